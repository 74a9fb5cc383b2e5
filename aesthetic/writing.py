"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path in the same folder, with the same suffix, to write to: at the end that file takes the place of `path`.

    After an error, nothing of it is left, and neither an error nor a kill changes `path`. An error that names no file,
    as that of a full disk, gets the name of `path`.
    """
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")  # processes may be at the same file
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)
        raise
