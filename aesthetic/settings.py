"""What the programs of this package set for the libraries that they run. Importing the package sets nothing."""

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

SPEEDS = ("plain", "graph", "compile")


def silence_libraries() -> None:
    """Let transformers and diffusers report errors only. To be called by a program, before either is imported.

    transformers would warn of a torchvision that is absent and not needed, diffusers of what the log says already.
    """
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def home() -> Path:
    """The folder of weights/ and embeddings/: AESTHETIC_HOME, else this checkout, or without one the user's cache."""
    if folder := os.environ.get("AESTHETIC_HOME"):
        return Path(folder)
    return user_cache_path("aesthetic-gradients", appauthor=False) if BUNDLED.is_dir() else BUNDLED.parent.parent


def find(path: Path) -> Path:
    """`path`, or where only the installed package has that file or folder of `home`, its copy there."""
    if path.exists() or not path.is_relative_to(home()):
        return path
    copy = BUNDLED / path.relative_to(home())
    return copy if copy.exists() else path


def model() -> str | None:
    """AESTHETIC_MODEL: a name in weights/manifest.json or a path; None if it is not set."""
    return os.environ.get("AESTHETIC_MODEL") or None


def speed(device: str) -> str:
    """One of SPEEDS: what AESTHETIC_SPEED says, or else the one that needs no preparation.

    device: a torch.device's type, "cuda" or "cpu".

    Raises SettingError.
    """
    wanted = os.environ.get("AESTHETIC_SPEED") or ("graph" if device == "cuda" else "plain")
    if wanted not in SPEEDS:
        raise SettingError(f"AESTHETIC_SPEED must be one of {', '.join(SPEEDS)}, not {wanted!r}")
    if wanted != "plain" and device != "cuda":
        raise SettingError(f"AESTHETIC_SPEED={wanted} needs a CUDA GPU, and there is none: unset it")
    return wanted
