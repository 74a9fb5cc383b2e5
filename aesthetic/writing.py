"""Write files completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole"]


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
