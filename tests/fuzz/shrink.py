"""Make an input smaller that still has the same fault: leave out halves, quarters, eighths, down to single bytes."""

import time
from collections.abc import Callable

__all__ = ["shrink"]

SECONDS = 20


def shrink(data: bytes, is_faulty: Callable[[bytes], bool]) -> bytes:
    """The smallest input found in some seconds."""
    end, piece = time.monotonic() + SECONDS, len(data) // 2
    while piece and time.monotonic() < end:
        at = 0
        while at < len(data) and time.monotonic() < end:
            shorter = data[:at] + data[at + piece :]
            if is_faulty(shorter):
                data = shorter
            else:
                at += piece
        piece = min(piece, len(data)) // 2
    return data
