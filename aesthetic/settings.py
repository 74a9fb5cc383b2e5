"""What the programs of this package set for the libraries that they run. Importing the package sets nothing."""

import os
from pathlib import Path

from .errors import SettingError

__all__ = ["SPEEDS", "home", "model", "silence_libraries", "speed"]

SPEEDS = ("plain", "graph", "compile")


def silence_libraries() -> None:
    """Let transformers and diffusers report errors only. To be called by a program, before either is imported.

    transformers would warn of a torchvision that is absent and not needed, diffusers of what the log says already.
    """
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def home() -> Path:
    """The folder that holds weights/ and embeddings/: AESTHETIC_HOME, or else this checkout."""
    return Path(os.environ.get("AESTHETIC_HOME") or Path(__file__).parent.parent)


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
