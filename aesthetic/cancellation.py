"""Predictions that can be canceled at any moment, and stop only at a `check`.

Cog cancels a prediction by raising an exception at whatever bytecode its thread has reached. Python's libraries do not
survive that: a lock just acquired (of a progress bar, the log, an import) is never released, and the next thread that
needs it waits forever. So predictions run in a thread of their own, while Cog's thread waits and takes the exception.
When the wait ends, the prediction stops at its next `check`, and the next one starts.

The threads communicate through queues, whose locks are in C. The worker thread is started in advance: while Python 3.11
starts a thread, the new thread has the id of the starting one, and Cog's exception could reach it.
"""

import asyncio
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

__all__ = ["Canceled", "Predictions", "check"]

POLL = 0.05  # seconds
Result = TypeVar("Result")


class Canceled(BaseException):
    """Ends a canceled prediction. A BaseException, so that `except Exception` does not report it as a failure."""


class _Wait:
    """Whether the caller has stopped waiting for a prediction."""

    over = False


_wait: ContextVar[_Wait | None] = ContextVar("_wait", default=None)


def check() -> None:
    """Raise Canceled in a canceled prediction. Call it in every loop that may take a while."""
    wait = _wait.get()
    if wait is not None and wait.over:
        raise Canceled


class Predictions:
    """The thread in which predictions run, one after another."""

    def __init__(self) -> None:
        """Start the thread, which ends when this object is garbage-collected. Not for use in a prediction."""
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._busy = Event()
        Thread(target=_work, args=(self._jobs, self._busy), daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def is_busy(self) -> bool:
        """Whether a prediction is running, including a canceled one that has not reached a `check`."""
        return self._busy.is_set()

    def make(self, predict: Callable[..., Result], *arguments: object) -> Result:
        """Call `predict` in the thread, with the caller's context, and return its result or raise its error.

        An exception may end this call at any bytecode; `predict` then runs on to its next `check`.
        """
        wait, answer = _Wait(), SimpleQueue[Future[Result]]()
        try:
            self._jobs.put((copy_context(), wait, predict, arguments, answer.put))
            return _taken(answer).result()
        finally:
            wait.over = True

    async def make_async(self, predict: Callable[..., Result], *arguments: object) -> Result:
        """As `make`, in an event loop: to cancel the prediction, cancel the task that awaits this."""
        wait, loop = _Wait(), asyncio.get_running_loop()
        answer: asyncio.Future[Future[Result]] = loop.create_future()

        def give(made: Future[Result]) -> None:
            loop.call_soon_threadsafe(lambda: None if answer.done() else answer.set_result(made))

        self._jobs.put((copy_context(), wait, predict, arguments, give))
        try:
            return (await answer).result()
        finally:
            wait.over = True


def _taken(answer: "SimpleQueue[Future[Result]]") -> Future[Result]:
    """The next item of the queue, polled: Python exceptions can't interrupt a wait in C without a timeout."""
    while True:
        with suppress(Empty):
            return answer.get(timeout=POLL)


def _work(jobs: "SimpleQueue[Any]", busy: Event) -> None:
    while (job := jobs.get()) is not None:
        busy.set()
        context, wait, predict, arguments, give = job
        made: Future[Any] = Future()
        try:
            made.set_result(context.run(_predict, wait, predict, arguments))
        except BaseException as error:  # any, or the caller would wait forever
            made.set_exception(error)
        busy.clear()
        with suppress(RuntimeError):  # the event loop is closed
            give(made)
        del job, context, wait, predict, arguments, give, made  # free the memory before the next job


def _predict(wait: _Wait, predict: Callable[..., Result], arguments: tuple[object, ...]) -> Result:
    _wait.set(wait)
    check()  # it may have been canceled while it was queued
    return predict(*arguments)
