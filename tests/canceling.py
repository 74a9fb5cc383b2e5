"""Cancels predictions as Cog does: with an exception raised in the waiting thread."""

import ctypes
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from aesthetic.cancellation import Predictions
from aesthetic.request import Request
from aesthetic.service import Service


class Thrown(BaseException):
    """Like Cog's: a BaseException, raised at any point."""


class Asking:
    """A thread that calls a function. outcome: "finished" or "canceled", once it has ended."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.outcome: str | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(ask,), daemon=True)
        self._thread.start()
        self._begun.wait()  # before that, nothing would catch the exception

    def _work(self, ask: Callable[[], object]) -> None:
        try:
            self._begun.set()
            ask()
            self.outcome = "finished"
        except Thrown:
            self.outcome = "canceled"

    def cancel(self) -> None:
        """Raise the exception in the thread, wherever it is."""
        ident = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Thrown))

    def wait(self) -> str | None:
        """Its outcome; None if it still hasn't ended after a minute."""
        self._thread.join(timeout=60)
        return self.outcome


def cancel(service: Service, request: Request) -> bool:
    """Start a prediction, and cancel it at a random moment. Whether that came in time."""
    predictions = Predictions()
    with tempfile.TemporaryDirectory() as folder:
        asking = Asking(lambda: predictions.make(service.predict, request, Path(folder)))
        time.sleep(random.uniform(0, 0.2))
        asking.cancel()
        outcome = asking.wait()
        assert outcome is not None, "it waits forever"
        predictions.make(int)  # the next one has its turn when this one has ended
    return outcome == "canceled"
