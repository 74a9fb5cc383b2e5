"""Write files completely or not at all, and by one process alone."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RequestError

__all__ = ["alone", "whole"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, to write to; at the end it replaces `path`.

    An error deletes the temporary file, and neither an error nor a kill changes `path`. An OSError without a file name,
    such as that of a full disk, gets the name of `path`.
    """
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")  # several processes may write the same file
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)
        raise


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file, which is made. Raises RequestError while another process has it: both would draw the same."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, in whatever way
        except BlockingIOError as error:
            raise RequestError(f"another process is at work in {lock.parent}: wait for it, or name another") from error
        yield
