"""Which device draws, on machines with a GPU that torch can't use."""

from pathlib import Path
from typing import Any

import pytest
import torch

from aesthetic.errors import SettingError
from aesthetic.models import device, loading
from aesthetic.service import Service

SMI = '#!/bin/sh\n[ "$1" = --query-gpu=name,driver_version ] && echo "NVIDIA A100-SXM4-40GB, 535.104.05"\n'


@pytest.fixture(autouse=True)
def _no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without one, whatever there is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device, "DEVICES", tmp_path)


def smi(folder: Path) -> None:
    (folder / "nvidia-smi").write_text(SMI)
    (folder / "nvidia-smi").chmod(0o755)


def test_without_a_gpu_the_cpu_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")  # as in an image of NVIDIA's that runs without a GPU
    assert device.default_device() == torch.device("cpu")


def test_a_gpu_that_torch_finds_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.default_device() == torch.device("cuda")


@pytest.mark.parametrize("cuda", ["13.0", None])
def test_a_driver_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None) -> None:
    smi(tmp_path)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    needed = "its CUDA 13 needs driver 580 or later, and a GPU of the Turing" if cuda else "it was built for the CPU"
    with pytest.raises(SettingError) as error:
        device.default_device()
    assert "there is a GPU (NVIDIA A100-SXM4-40GB, driver 535.104.05), and torch" in str(error.value)
    assert needed in str(error.value)
    assert "set CUDA_VISIBLE_DEVICES to an empty string" in str(error.value)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(SettingError, match="CUDA_VISIBLE_DEVICES is '7'"):
        device.default_device()


@pytest.mark.parametrize("chosen", ["", "-1"])
def test_the_cpu_can_be_chosen_on_purpose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str) -> None:
    smi(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert device.default_device() == torch.device("cpu")


def test_a_gpu_is_seen_by_its_device_file(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert device.default_device() == torch.device("cpu")
    (tmp_path / "nvidia0").touch()
    with pytest.raises(SettingError, match=r"there is a GPU .*/nvidia0"):
        device.default_device()


def test_a_gpu_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi(tmp_path)
    device.require_kernels(torch.device("cpu"))

    def fail(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(SettingError, match=r"can't use it: CUDA error: no kernel image is available .* device; it"):
        device.require_kernels(torch.device("cpu"))


def test_a_service_says_so_before_it_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi(tmp_path)
    monkeypatch.setattr(loading, "load", lambda *_: 1 / 0)
    with pytest.raises(SettingError, match="there is a GPU"):
        Service.load("demo")
