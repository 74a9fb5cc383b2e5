"""Environment variables: AESTHETIC_HOME, AESTHETIC_MODEL, AESTHETIC_SPEED, and the libraries' verbosity. No torch."""

import os
from pathlib import Path

from platformdirs import user_cache_path

from .errors import SettingError

__all__ = ["DOWNLOAD", "INCOMPLETE", "SPEEDS", "find", "home", "model", "silence_libraries", "speed"]

BUNDLED = Path(__file__).parent / "bundled"  # in a wheel only: index, manifest, the demo and its aesthetics
if BUNDLED.is_dir():
    DOWNLOAD = "aesthetic download-weights"
    INCOMPLETE = "the package is incomplete, and pip install --force-reinstall aesthetic-gradients mends it"
else:
    DOWNLOAD = "script/download-weights"
    INCOMPLETE = "the checkout is incomplete, and git checkout -- {} mends it"

SPEEDS = ("plain", "fast")


def silence_libraries() -> None:
    """Let transformers and diffusers log errors only. Programs call this before they import either.

    transformers would warn that torchvision, which is not needed, is missing; diffusers would repeat our log.
    """
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def home() -> Path:
    """The folder of weights/ and embeddings/: AESTHETIC_HOME, else this checkout, or without one the user's cache."""
    if folder := os.environ.get("AESTHETIC_HOME"):
        return Path(folder)
    return user_cache_path("aesthetic-gradients", appauthor=False) if BUNDLED.is_dir() else BUNDLED.parent.parent


def find(path: Path) -> Path:
    """`path`, or, if it is missing from `home`, the installed package's copy of that file or folder."""
    if path.exists() or not path.is_relative_to(home()):
        return path
    copy = BUNDLED / path.relative_to(home())
    return copy if copy.exists() else path


def model() -> str | None:
    """AESTHETIC_MODEL: a name in weights/manifest.json or a path; None if it is not set."""
    return os.environ.get("AESTHETIC_MODEL") or None


def speed(device: str) -> str:
    """AESTHETIC_SPEED, one of SPEEDS; unset, "fast" on a GPU and "plain" on a CPU. Raises SettingError.

    device: a torch.device's type, "cuda" or "cpu".
    """
    wanted = os.environ.get("AESTHETIC_SPEED") or ("fast" if device == "cuda" else "plain")
    if wanted not in SPEEDS:
        raise SettingError(f"AESTHETIC_SPEED must be one of {', '.join(SPEEDS)}, not {wanted!r}")
    if wanted != "plain" and device != "cuda":
        raise SettingError(f"AESTHETIC_SPEED={wanted} needs a CUDA GPU, which was not found: unset it")
    return wanted
