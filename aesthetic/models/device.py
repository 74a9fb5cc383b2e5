"""The device to draw on: the first NVIDIA GPU, or the CPU if there is no GPU or the user chose the CPU."""

import os
import subprocess
from pathlib import Path

import torch

from ..errors import SettingError

__all__ = ["default_device", "require_kernels"]

DEVICES = Path("/dev")
NEEDS = {  # by the version of CUDA that torch was built for
    "12": "driver 525 or later",
    "13": "driver 580 or later, and a GPU of the Turing generation (compute capability 7.5) or later",
}


def default_device() -> torch.device:
    """The first CUDA GPU, or else the CPU. Raises SettingError for an NVIDIA GPU that torch can't use."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen not in ("", "-1") and (gpu := _gpu()):
        raise _unusable(gpu, f"CUDA_VISIBLE_DEVICES is {chosen!r}; " if chosen else "")
    return torch.device("cpu")


def require_kernels(device: torch.device) -> None:
    """Raise SettingError for a GPU on which torch can't compute, for instance one too old for its kernels."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        raise _unusable(_gpu() or str(device), str(error).partition("\n")[0] + "; ") from error


def _unusable(gpu: str, reason: str = "") -> SettingError:
    cuda = (torch.version.cuda or "").partition(".")[0]
    needs = f"its CUDA {cuda} needs {NEEDS.get(cuda, 'a newer driver')}" if cuda else "it was built for the CPU"
    return SettingError(
        f"there is a GPU ({gpu}), and torch {torch.__version__} can't use it: {reason}{needs}. "
        "To draw on the CPU, which takes minutes for each image, set CUDA_VISIBLE_DEVICES to an empty string"
    )


def _gpu() -> str:
    """Name and driver of the first NVIDIA GPU, whether torch can use it or not; blank without a GPU.

    NVIDIA_VISIBLE_DEVICES is not used: NVIDIA's base images set it on machines without a GPU, too.
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        lines = [str(path) for path in sorted(DEVICES.glob("nvidia[0-9]*"))]
    return lines[0].replace(", ", ", driver ") if lines else ""
