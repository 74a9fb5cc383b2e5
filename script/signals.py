"""Signals that end a program which has a server to take along: heard at any time, raised only where that can be borne.

A handler that raises wherever the program happens to be would leave the server behind if that were between its start
and the `try` that ends it, or while it is being ended.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["ENDING", "Signals"]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Signals:
    """Those that have been heard, in order."""

    def __init__(self, *numbers: signal.Signals) -> None:
        """Listen to these, from now on, in the main thread; not to one that is ignored, as nohup has it."""
        self.heard: list[int] = []
        self._raising = False
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise the first one within, also if it was heard before: KeyboardInterrupt, or SystemExit(128 + number)."""
        self._raising = True
        try:
            self._raise()
            yield
        finally:
            self._raising = False

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.heard.append(number)
        self._raise()

    def _raise(self) -> None:
        if self._raising and self.heard:
            self._raising = False
            raise KeyboardInterrupt if self.heard[0] == signal.SIGINT else SystemExit(128 + self.heard[0])
