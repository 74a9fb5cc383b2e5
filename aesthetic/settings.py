"""What the programs of this package set for the libraries that they run. Importing the package sets nothing."""

import os

__all__ = ["silence_libraries"]


def silence_libraries() -> None:
    """Let transformers and diffusers report errors only. To be called by a program, before either is imported.

    transformers would warn of a torchvision that is absent and not needed, diffusers of what the log says already.
    """
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
