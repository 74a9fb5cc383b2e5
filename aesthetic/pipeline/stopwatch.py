"""Seconds by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds of each stage. `seconds` maps the stages' names to them, in order."""

    def __init__(self, device: torch.device) -> None:
        """device: where the work is done; CUDA runs it asynchronously, so a stage ends with a synchronization."""
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time what is done within; nothing is added after an error."""
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
