"""The least time that work can take: the device's rates, measured, and the work, counted.

    floor = max(floating-point operations / rate of a large matrix product, bytes / rate of a large copy)

The bytes are those that every order of the work must move: weights, once for each use.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Rates", "Work", "bytes_of", "measure", "operations", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does in a second.

    flops: floating-point operations of a matrix product, by dtype; those of fp32 in TF32, as in cuDNN's convolutions.
    bytes: read and written by a copy.
    """

    flops: dict[torch.dtype, float]
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations in a dtype, and bytes to move."""

    flops: float
    bytes: float
    dtype: torch.dtype

    def floor(self, rates: Rates) -> float:
        """The least seconds that the work can take."""
        return max(self.flops / rates.flops[self.dtype], self.bytes / rates.bytes)

    def times(self, count: float) -> "Work":
        """The same work `count` times."""
        return Work(flops=count * self.flops, bytes=count * self.bytes, dtype=self.dtype)


def measure(device: torch.device, dtypes: set[torch.dtype]) -> Rates:
    """The rates of `device`: the best of several tries, at sizes that keep it busy."""
    side, room = (8192, 2**30) if device.type == "cuda" else (1024, 2**26)
    flops, products = {}, torch.backends.cuda.matmul
    allowed, products.allow_tf32 = products.allow_tf32, True
    for dtype in dtypes:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        flops[dtype] = 2 * side**3 / _best(device, lambda a=a, b=b: a @ b)  # type: ignore[misc]
    products.allow_tf32 = allowed
    source = torch.zeros(room, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(flops=flops, bytes=2 * room / _best(device, lambda: target.copy_(source)))


def operations(action: Callable[[], object]) -> int:
    """The floating-point operations of matrix products and convolutions in `action`, which is run once."""
    # FlopCounterMode counts the GPU's attention kernels but not the CPU's; the math backend uses matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        action()
    return int(counter.get_total_flops())


def bytes_of(*modules: nn.Module) -> int:
    """The bytes of all weights."""
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def seconds(device: torch.device, action: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that `action` takes, with the work it starts on the device, and its result."""
    _wait(device)
    started = time.perf_counter()
    result = action()
    _wait(device)
    return time.perf_counter() - started, result


def _best(device: torch.device, action: Callable[[], object], tries: int = 10) -> float:
    return min(seconds(device, action)[0] for _ in range(tries))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
