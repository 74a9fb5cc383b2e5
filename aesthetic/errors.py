"""The errors that this package raises on purpose.

Each message says what was wrong, with which value, and what would be valid: users of the service see only the message.

    AestheticError
    ├── RequestError
    ├── EmbeddingError
    ├── ImageError
    ├── CheckpointError
    ├── DrawingError
    └── SettingError
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "AestheticError",
    "CheckpointError",
    "DrawingError",
    "EmbeddingError",
    "ImageError",
    "RequestError",
    "SettingError",
    "naming_input",
    "printable",
]


class AestheticError(Exception):
    """The root of the tree."""


class RequestError(AestheticError):
    """An input is out of range, of the wrong type, or contradicts another."""


class EmbeddingError(AestheticError):
    """A file is not an aesthetic, or belongs to another CLIP space."""


class ImageError(AestheticError):
    """An image or an archive of images can't be used."""


class CheckpointError(AestheticError):
    """Weights or a LoRA are missing, incomplete, unsuitable, or can't be downloaded."""


class DrawingError(AestheticError):
    """No image can be returned: all are blocked, or the model gave values that are not finite."""


class SettingError(AestheticError):
    """An environment variable is invalid, or the machine lacks what it or the model needs."""


def printable(text: str) -> str:
    """A text from a file or another library for messages: its first 200 characters, without control characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:200])


@contextmanager
def naming_input(name: str) -> Iterator[None]:
    """Start the message of any AestheticError with the name of the input that caused it."""
    try:
        yield
    except AestheticError as error:
        raise type(error)(f"{name}: {error}") from error
