"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path in the same folder, with the same suffix, to write to: at the end that file takes the place of `path`.

    After an error, as on a full disk, nothing of it is left, and neither an error nor a kill changes `path`.
    """
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")  # processes may be at the same file
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
