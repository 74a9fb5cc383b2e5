"""The cache of graphs, and the results of replays. test_gpu.py tests real graphs."""

from functools import partial

import pytest
import torch
from torch import Tensor

from aesthetic.acceleration.cuda_graphs import GraphedCallable, LRUCache
from tests.acceleration.recorder import EagerRecorder


def test_each_set_of_shapes_is_captured_once() -> None:
    recorder = EagerRecorder()
    double = GraphedCallable(lambda x, y: 2 * x + y, recorder)
    for width in (3, 4, 3, 3, 4):
        x, y = torch.randn(2, width), torch.randn(width)
        assert torch.equal(double(x, y), 2 * x + y)
    assert recorder.recorded == 2
    double(torch.ones(2, 3).double(), torch.ones(3))
    assert recorder.recorded == 3


def test_results_are_copies() -> None:
    same = GraphedCallable(lambda x: x + 0, EagerRecorder())
    first = same(torch.ones(3))
    assert torch.equal(same(torch.zeros(3)), torch.zeros(3))
    assert torch.equal(first, torch.ones(3))


def test_the_cache_keeps_the_latest_values() -> None:
    made: list[int] = []
    kept = LRUCache[int](2)

    def make(key: int) -> int:
        made.append(key)
        return key

    assert [kept.get(key, partial(make, key)) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]


def test_a_failed_capture_is_retried() -> None:
    failures = iter([True, False])

    def full(x: Tensor) -> Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError
        return x

    function = GraphedCallable(full, EagerRecorder())
    with pytest.raises(torch.OutOfMemoryError):
        function(torch.ones(1))
    assert torch.equal(function(torch.ones(1)), torch.ones(1))
