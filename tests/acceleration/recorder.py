"""Graphs without a GPU: a replay runs the captured function again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aesthetic.acceleration.cuda_graphs import WARM_UPS, Graph, Recorder, Result


@dataclass(frozen=True)
class Again:
    """Stands for a CUDA graph."""

    action: Callable[[], Any]
    results: Any

    def replay(self) -> None:
        """Run the function again, into the same memory."""
        for place, result in zip(_tensors(self.results), _tensors(self.action()), strict=True):
            place.copy_(result)


class EagerRecorder(Recorder):
    """A Recorder without CUDA, which counts its captures."""

    def __init__(self) -> None:
        self.device, self.recorded = torch.device("cpu"), 0

    def record(self, action: Callable[[], Result]) -> Graph[Result]:
        """See Recorder.record."""
        self.recorded += 1
        for _ in range(WARM_UPS):
            action()
        results = action()
        return Graph(Again(action, results), results)


def _tensors(results: Any) -> tuple[Tensor, ...]:
    if results is None:
        return ()
    return results if isinstance(results, tuple) else (results,)
