"""Everything that can go wrong on purpose, as one tree.

Every message says what was wrong, which value it was, and what would have been right: the message is all
that a user of the service gets to see.

    AestheticError
    ├── RequestError       an input is out of range, of the wrong kind, or contradicts another
    ├── EmbeddingError     a file is not an aesthetic, or is one of another CLIP space
    ├── ImageError       a picture or an archive of pictures cannot be used
    ├── CheckpointError    weights are missing, incomplete, or not what they should be
    ├── DownloadError      a file could not be fetched, or is not the one that was asked for
    ├── DrawingError       the model drew nothing that may be returned
    └── SettingError       the environment asks for what can't be done
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "AestheticError",
    "CheckpointError",
    "DownloadError",
    "DrawingError",
    "EmbeddingError",
    "ImageError",
    "RequestError",
    "SettingError",
    "naming_input",
]


class AestheticError(Exception):
    """The root of the tree."""


class RequestError(AestheticError):
    """An input is out of range, of the wrong kind, or contradicts another."""


class EmbeddingError(AestheticError):
    """A file is not an aesthetic, or is one of another CLIP space."""


class ImageError(AestheticError):
    """A picture or an archive of pictures cannot be used."""


class CheckpointError(AestheticError):
    """Weights are missing, incomplete, or not what they should be."""


class DownloadError(AestheticError):
    """A file could not be fetched, or is not the one that was asked for."""


class DrawingError(AestheticError):
    """The model drew nothing that may be returned."""


class SettingError(AestheticError):
    """An environment variable asks for what there is not, or what this machine can't do."""


@contextmanager
def naming_input(name: str) -> Iterator[None]:
    """Begin the message of whatever goes wrong with the input that is to blame."""
    try:
        yield
    except AestheticError as error:
        raise type(error)(f"{name}: {error}") from error
