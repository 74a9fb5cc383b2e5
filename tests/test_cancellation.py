"""Canceled predictions end, and do not delay others."""

import asyncio
import gc
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tqdm import tqdm

from aesthetic.cancellation import Canceled, Predictions, check
from aesthetic.request import Request
from aesthetic.service import Service
from tests.canceling import Asking


def test_results_and_errors_reach_the_caller() -> None:
    predictions = Predictions()
    assert predictions.make(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        predictions.make(divmod, 7, 0)
    assert predictions.make(threading.get_ident) == predictions.make(threading.get_ident) != threading.get_ident()


def test_an_event_loop_waits_for_a_prediction_and_cancels_it_with_its_task() -> None:
    predictions, steps = Predictions(), []

    def go_on() -> None:
        while True:
            steps.append(1)
            time.sleep(0.001)
            check()

    async def use() -> None:
        assert await predictions.make_async(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await predictions.make_async(divmod, 7, 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(predictions.make_async(go_on), 0.1)
        done = len(steps)
        assert await predictions.make_async(divmod, 7, 2) == (3, 1)  # which waits for the canceled one
        assert 0 < done <= len(steps) <= done + 1

    asyncio.run(asyncio.wait_for(use(), 60))


def test_a_prediction_runs_in_the_callers_context() -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")
    who.set("somebody")
    assert Predictions().make(who.get) == "somebody"


def test_check_does_nothing_outside_of_a_prediction() -> None:
    check()
    Predictions().make(check)
    check()


class Large:
    """Stands for the data of a prediction."""

    def go_on(self) -> None:
        """Until it is canceled."""
        while True:
            check()


@pytest.mark.parametrize("predict", [id, len, Large.go_on])
def test_a_finished_prediction_is_freed_even_if_it_failed(predict: Callable[[object], int]) -> None:
    predictions, one = Predictions(), Large()
    known = weakref.ref(one)
    gc.disable()  # or it would free reference cycles, sooner or later
    try:
        asking = Asking(partial(ask, predictions, predict, one))
        del one
        time.sleep(0.2)
        if asking.outcome is None:
            asking.cancel()
        assert asking.wait() is not None
        for _ in range(100):
            if known() is None:
                return
            time.sleep(0.05)
        pytest.fail("it lives on")
    finally:
        gc.enable()


def ask(predictions: Predictions, predict: Callable[[object], int], one: object) -> None:
    """Whatever becomes of it."""
    with suppress(TypeError):
        predictions.make(predict, one)


def test_errors_of_any_kind_reach_the_caller() -> None:
    def fail() -> None:
        raise queue.Empty

    with pytest.raises(queue.Empty):
        Predictions().make(fail)


def test_the_thread_ends_with_its_owner() -> None:
    before = set(threading.enumerate())
    predictions = Predictions()
    [thread] = set(threading.enumerate()) - before
    del predictions
    thread.join(timeout=30)
    assert not thread.is_alive()


class Endless:
    """A prediction that goes on until it is stopped."""

    def __init__(self, step: Callable[[], object] = check) -> None:
        self.begun, self.stopped, self._step = threading.Event(), threading.Event(), step

    def __call__(self) -> None:
        """To be made."""
        self.begun.set()
        try:
            while True:
                self._step()
                check()
        except Canceled:
            self.stopped.set()
            raise


def test_a_canceled_prediction_stops_and_the_next_begins() -> None:
    predictions, endless = Predictions(), Endless()
    asking = Asking(lambda: predictions.make(endless))
    assert endless.begun.wait(30)
    asking.cancel()
    assert asking.wait() == "canceled"
    assert predictions.make(endless.stopped.is_set)


def test_a_prediction_canceled_in_the_queue_never_begins() -> None:
    predictions, endless, never = Predictions(), Endless(), Endless()
    first = Asking(lambda: predictions.make(endless))
    assert endless.begun.wait(30)
    second = Asking(lambda: predictions.make(never))
    second.cancel()
    assert second.wait() == "canceled"
    first.cancel()
    assert not predictions.make(never.begun.is_set)


def test_progress_bars_logs_and_locks_survive_canceling(caplog: pytest.LogCaptureFixture) -> None:
    """If raised in the prediction itself, one exception in some dozens would leave a lock taken."""
    lock = threading.Condition()

    def step() -> None:
        with lock, tqdm(total=1) as bar:
            logging.getLogger(f"one of {bar}").info("that is not known yet")

    caplog.set_level(logging.INFO)
    predictions = Predictions()
    for _ in range(100):
        endless = Endless(step)
        asking = Asking(lambda endless=endless: predictions.make(endless))  # type: ignore[misc]
        assert endless.begun.wait(30)
        asking.cancel()
        assert asking.wait() == "canceled"
    assert predictions.make(step) is None


@pytest.mark.parametrize(
    "long",
    [
        {"aesthetic_steps": 100},
        {"num_inference_steps": 500},
        {"num_inference_steps": 500, "image": "picture"},
        {"num_inference_steps": 500, "image": "picture", "mask": "picture"},
    ],
)
def test_a_long_prediction_stops_within_a_step(
    service: Service, quick: Request, tmp_path: Path, long: dict[str, object]
) -> None:
    Image.effect_noise((128, 128), 60).convert("L").save(tmp_path / "picture.png")
    files = {name: tmp_path / "picture.png" for name in ("image", "mask") if name in long}
    request = replace(quick, **long | files)  # type: ignore[arg-type]
    predictions, begun, calls = Predictions(), threading.Event(), list[None]()

    def count(*_: object) -> None:
        calls.append(None)
        begun.set()

    personalizer: Any = service.personalizer
    part = personalizer._working if "aesthetic_steps" in long else service.model.pipeline.unet
    hook = part.register_forward_hook(count)
    try:
        asking = Asking(lambda: predictions.make(service.predict, request, tmp_path))
        assert begun.wait(60)
        asking.cancel()
        assert asking.wait() == "canceled"
        before = len(calls)
        predictions.make(int)
        assert len(calls) <= before + 2
    finally:
        hook.remove()
