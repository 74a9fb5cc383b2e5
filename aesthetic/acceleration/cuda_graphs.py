"""Work on a GPU that is recorded once, as a CUDA graph, and replayed from then on.

Half of a prediction's time goes by while the GPU waits for Python to launch the next kernel. A replay launches all of a
step in one call: the same kernels, so that the results are the same to the last bit. A graph is of one set of shapes;
another set is recorded when it is first asked for.

This file knows torch and functions of tensors, and not what they compute.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Graph", "GraphedCallable", "LRUCache", "Recorder"]

Result = TypeVar("Result")
CACHED = 8  # sets of shapes of one function
WARM_UPS = 2  # runs before the recording, in which libraries choose and load their kernels


@dataclass(frozen=True)
class Graph(Generic[Result]):
    """What was recorded, and the memory in which a replay leaves its results: that of the next overwrites it."""

    recording: Any
    results: Result

    def replay(self) -> Result:
        """Launch all of it."""
        self.recording.replay()
        return self.results


class Recorder:
    """Records what others ask for. Whoever interrupts that, in a notebook say, has to start anew: torch can't go on.

    All graphs share memory: one is replayed at a time, and what it leaves is copied before the next is. Of a pool,
    torch uses again what was freed in the same stream: there is only one.
    """

    def __init__(self, device: torch.device) -> None:
        """On a CUDA GPU."""
        self.device = device
        self._renew()

    def _renew(self) -> None:
        self._stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()

    def record(self, action: Callable[[], Result]) -> Graph[Result]:
        """A graph of what `action` does, which is run a few times first. A capture that fails leaves nothing behind."""
        before = torch.cuda.current_stream(self.device)
        try:
            return self._capture(action)
        except BaseException:
            # A capture that CUDA invalidated, as it may when memory runs out, can't be ended: torch leaves its stream
            # current and its pool open, and every later capture in that pool fails.
            if torch.cuda.current_stream(self.device) != before:
                torch.cuda.set_stream(before)
                self._renew()
            raise

    def _capture(self, action: Callable[[], Result]) -> Graph[Result]:
        with torch.cuda.device(self.device):  # the thread's own may be another
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    action()
            torch.cuda.current_stream().wait_stream(self._stream)
            recording = torch.cuda.CUDAGraph()
            # Threads beside this one must not be taken for disturbances.
            with torch.cuda.graph(recording, self._memory, self._stream, capture_error_mode="thread_local"):
                results = action()
        return Graph(recording, results)


class LRUCache(Generic[Result]):
    """What was made for the latest few keys, once for each."""

    def __init__(self, limit: int = CACHED) -> None:
        self._limit = limit
        self._made: OrderedDict[Hashable, Result] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """That of `key`, made if it is not there."""
        if key not in self._made:
            self._made[key] = make()
            if len(self._made) > self._limit:
                self._made.popitem(last=False)  # CUDA frees a graph once it is through with it
        self._made.move_to_end(key)
        return self._made[key]


class GraphedCallable:
    """A function of tensors that is replayed: takes and gives what `function` does, but for gradients."""

    def __init__(self, function: Callable[..., Tensor], recorder: Recorder) -> None:
        self._function, self._recorder = function, recorder
        self._graphs: LRUCache[tuple[list[Tensor], Graph[Tensor]]] = LRUCache()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the function gives for `inputs`, which may be on the CPU: a tensor of the caller's own."""
        key = tuple((one.shape, one.dtype) for one in inputs)
        places, graph = self._graphs.get(key, lambda: self._record(inputs))
        for place, one in zip(places, inputs, strict=True):
            place.copy_(one, non_blocking=True)
        return graph.replay().clone()

    @torch.no_grad()
    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Graph[Tensor]]:
        places = [one.to(self._recorder.device, copy=True).contiguous() for one in inputs]
        return places, self._recorder.record(lambda: self._function(*places))
