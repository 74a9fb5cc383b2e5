"""Capture GPU work as a CUDA graph once, and replay it from then on.

Without graphs, the GPU spends half of a prediction waiting for Python to launch the next kernel. A replay launches all
kernels of a step in one call. They are the captured function's, so results equal its own to the last bit. A graph
serves one set of shapes; each other set is captured at its first use.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Graph", "GraphedCallable", "LRUCache", "Recorder"]

Result = TypeVar("Result")
CACHED = 8  # graphs kept for one function
WARM_UPS = 2  # runs before the capture, in which libraries choose and load their kernels


@dataclass(frozen=True)
class Graph(Generic[Result]):
    """A capture, and the memory of its results, which the next replay overwrites."""

    recording: Any
    results: Result

    def replay(self) -> Result:
        """Launch all kernels, and return the memory of the results."""
        self.recording.replay()
        return self.results


class Recorder:
    """Captures graphs. If a capture is interrupted, as in a notebook, the process must restart.

    All graphs share one memory pool: one is replayed at a time, and its results are copied before the next. torch
    reuses pool memory only on the stream that freed it, so all captures share one stream.
    """

    def __init__(self, device: torch.device) -> None:
        """device: a CUDA GPU."""
        self.device = device
        self._renew()

    def _renew(self) -> None:
        # Of a high priority: what an action launches beside it, on a stream of its own, must not delay it.
        self._stream: Any = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()

    def record(self, action: Callable[[], Result]) -> Graph[Result]:
        """A graph of `action`, which runs a few times first. A failed capture does not affect later ones."""
        before = torch.cuda.current_stream(self.device)
        try:
            return self._capture(action)
        except BaseException:
            # torch can't end a capture that CUDA invalidated, for instance when memory ran out: its stream stays
            # current and its pool open, and every later capture in that pool fails.
            if torch.cuda.current_stream(self.device) != before:
                torch.cuda.set_stream(before)
                self._renew()
            raise

    def _capture(self, action: Callable[[], Result]) -> Graph[Result]:
        with torch.cuda.device(self.device):  # the thread's current device may be another
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    action()
            torch.cuda.current_stream().wait_stream(self._stream)
            recording = torch.cuda.CUDAGraph()
            # CUDA calls of other threads must not invalidate the capture.
            with torch.cuda.graph(recording, self._memory, self._stream, capture_error_mode="thread_local"):
                results = action()
        return Graph(recording, results)


class LRUCache(Generic[Result]):
    """The values of the keys used last."""

    def __init__(self, limit: int = CACHED) -> None:
        self._limit = limit
        self._made: OrderedDict[Hashable, Result] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """The value of `key`, from `make` if it is not cached."""
        if key not in self._made:
            self._made[key] = make()
            if len(self._made) > self._limit:
                self._made.popitem(last=False)  # CUDA frees a graph after its last replay ends
        self._made.move_to_end(key)
        return self._made[key]


class GraphedCallable:
    """A function of tensors, replayed as a CUDA graph; without gradients."""

    def __init__(self, function: Callable[..., Tensor], recorder: Recorder) -> None:
        self._function, self._recorder = function, recorder
        self._graphs: LRUCache[tuple[list[Tensor], Graph[Tensor]]] = LRUCache()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """`function(*inputs)` as a new tensor; inputs may be on the CPU."""
        key = tuple((one.shape, one.dtype) for one in inputs)
        places, graph = self._graphs.get(key, lambda: self._record(inputs))
        for place, one in zip(places, inputs, strict=True):
            place.copy_(one, non_blocking=True)
        return graph.replay().clone()

    @torch.no_grad()
    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Graph[Tensor]]:
        places = [one.to(self._recorder.device, copy=True).contiguous() for one in inputs]
        return places, self._recorder.record(lambda: self._function(*places))
