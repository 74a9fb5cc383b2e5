"""Bars and logs without locks, for no cancelled prediction to leave one taken.

A prediction is cancelled by an exception at whatever bytecode its thread has reached. Whoever needs a lock that it had
just then waits forever: the next prediction, or whichever thread happens to clear the cancelled bar away. What the
locks are for, several threads that draw bars at the same time, does not happen here; a line of the log is written in
one piece without them.
"""

import logging
from typing import Any

from tqdm.auto import tqdm

__all__ = ["unlock"]


class _Unlocked:
    """A lock that all may have at once."""

    def acquire(self, *_: Any, **__: Any) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


def unlock() -> None:
    """Take the locks from the bars of `tqdm.auto`, ours and diffusers', and from all handlers that the log has now."""
    tqdm.monitor_interval = 0  # no thread for slow bars, which would be started in the middle of a prediction
    tqdm.set_lock(_Unlocked())
    for handler in logging.getLogger().handlers:
        handler.lock = _Unlocked()  # type: ignore[assignment]
