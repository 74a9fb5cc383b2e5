"""Predictions that can be cancelled at any moment, and stop only where they look.

Cog cancels a prediction by an exception at whatever bytecode its thread has reached. Neither Python nor its libraries
stand that: a lock that had just been taken, of a progress bar, of the log, of an import, stays taken, and whoever needs
it next waits forever. So predictions are made in a thread that nobody throws anything into. The one that was asked
waits for it; when it is thrown out, the prediction ends at its next `check`, and the one after that begins.
"""

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import TypeVar

from .workers import Workers

__all__ = ["Cancelled", "Predictions", "check"]

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
        """Start it: not to be done in a prediction."""
        self._thread = Workers()

    def make(self, predict: Callable[..., Result], *arguments: object) -> Result:
        """What `predict` gives or raises: called in the thread, but in the caller's context.

        May end with an exception from outside at any bytecode; then `predict` goes on until it checks.
        """
        wait = _Wait()
        try:
            made: Result = self._thread.submit(copy_context().run, _predict, wait, predict, arguments).result()
            return made
        finally:
            wait.over = True


def _predict(wait: _Wait, predict: Callable[..., Result], arguments: tuple[object, ...]) -> Result:
    _wait.set(wait)
    check()  # it may have waited for the one before
    return predict(*arguments)
