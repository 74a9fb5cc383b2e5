"""Predictions that can be cancelled at any moment, and stop only where they look.

Cog cancels a prediction by an exception at whatever bytecode its thread has reached. Neither Python nor its libraries
stand that: a lock that had just been taken, of a progress bar, of the log, of an import, stays taken, and whoever needs
it next waits forever. So predictions are made in a thread that nobody throws anything into. The one that was asked
waits for it; when it is thrown out, the prediction ends at its next `check`, and the one after that begins.

What goes to and fro between the two goes through queues, which C code locks. The thread is started in advance: until
one that is just being started runs, Python 3.11 knows it by the number of the one that starts it, and the exception
would go there.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

__all__ = ["Cancelled", "Predictions", "check"]

POLL = 0.05  # seconds
Result = TypeVar("Result")


class Cancelled(BaseException):
    """Ends a prediction that nobody waits for any more: no Exception, for nobody to take it for a failure."""


class _Wait:
    """Somebody waits for a prediction, or no longer does."""

    over = False


_wait: ContextVar[_Wait | None] = ContextVar("_wait", default=None)


def check() -> None:
    """Raise Cancelled in a prediction that nobody waits for. To be called in every loop that may take a while."""
    wait = _wait.get()
    if wait is not None and wait.over:
        raise Cancelled


class Predictions:
    """The thread in which predictions are made, one after the other."""

    def __init__(self) -> None:
        """Start it: not to be done in a prediction. It ends when nobody knows this object any more."""
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._busy = Event()
        Thread(target=_work, args=(self._jobs, self._busy), daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def is_busy(self) -> bool:
        """Whether a prediction is being made, also one that was cancelled and has not checked yet."""
        return self._busy.is_set()

    def make(self, predict: Callable[..., Result], *arguments: object) -> Result:
        """What `predict` gives or raises: called in the thread, but in the caller's context.

        May end with an exception from outside at any bytecode; then `predict` goes on until it checks.
        """
        wait, answer = _Wait(), SimpleQueue[Future[Result]]()
        try:
            self._jobs.put((copy_context(), wait, predict, arguments, answer))
            return _taken(answer).result()
        finally:
            wait.over = True


def _taken(answer: "SimpleQueue[Future[Result]]") -> Future[Result]:
    """What comes out of the queue: who waits for it in C code, for ever, hears of no exception meanwhile."""
    while True:
        with suppress(Empty):
            return answer.get(timeout=POLL)


def _work(jobs: "SimpleQueue[Any]", busy: Event) -> None:
    while (job := jobs.get()) is not None:
        busy.set()
        context, wait, predict, arguments, answer = job
        made: Future[Any] = Future()
        try:
            made.set_result(context.run(_predict, wait, predict, arguments))
        except BaseException as error:  # of whatever kind: somebody waits
            made.set_exception(error)
        busy.clear()
        answer.put(made)
        del job, context, wait, predict, arguments, answer, made  # or they would live on until the next one


def _predict(wait: _Wait, predict: Callable[..., Result], arguments: tuple[object, ...]) -> Result:
    _wait.set(wait)
    check()  # it may have waited for the one before
    return predict(*arguments)
