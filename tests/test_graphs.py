"""What is kept of graphs, and what a function that is replayed gives. Real graphs are tested in test_gpu.py."""

import sys
import threading
from functools import partial

import pytest
import torch
from torch import Tensor

from aesthetic.graphs import Graphed, Kept
from aesthetic.workers import Answer
from tests.recorder import EagerRecorder


def test_each_set_of_shapes_is_recorded_once() -> None:
    recorder = EagerRecorder()
    double = Graphed(lambda x, y: 2 * x + y, recorder)
    for width in (3, 4, 3, 3, 4):
        x, y = torch.randn(2, width), torch.randn(width)
        assert torch.equal(double(x, y), 2 * x + y)
    assert recorder.recorded == 2
    double(torch.ones(2, 3).double(), torch.ones(3))
    assert recorder.recorded == 3


def test_what_it_gives_is_the_callers_own() -> None:
    same = Graphed(lambda x: x + 0, EagerRecorder())
    first = same(torch.ones(3))
    assert torch.equal(same(torch.zeros(3)), torch.zeros(3))
    assert torch.equal(first, torch.ones(3))


def test_the_latest_few_are_kept() -> None:
    made: list[int] = []
    kept = Kept[int](EagerRecorder(), 2)

    def make(key: int) -> int:
        made.append(key)
        return key

    assert [kept.get(key, partial(make, key)) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]


def test_what_was_asked_for_arrives_even_if_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, begun, go_on = EagerRecorder(), threading.Event(), threading.Event()
    kept, made = Kept[int](recorder), []

    def make() -> int:
        begun.set()
        go_on.wait(10)
        made.append(7)
        return 7

    with monkeypatch.context() as cancelled:
        cancelled.setattr(Answer, "result", lambda _: begun.wait(10) and sys.exit())
        with pytest.raises(SystemExit):
            kept.get("a", make)
    go_on.set()
    recorder.settle()
    assert kept.get("a", make) == 7
    assert made == [7]


def test_what_could_not_be_recorded_is_tried_again() -> None:
    failures = iter([True, False])

    def full(x: Tensor) -> Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError
        return x

    function = Graphed(full, EagerRecorder())
    with pytest.raises(torch.OutOfMemoryError):
        function(torch.ones(1))
    assert torch.equal(function(torch.ones(1)), torch.ones(1))
