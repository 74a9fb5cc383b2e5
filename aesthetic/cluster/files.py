"""Files by path or URL: what requests name is fetched within limits, results are written whole.

data: and http(s): go through urllib; s3:, gs:, abfs: and hdfs: through pyarrow, which has all of them in its wheel.
"""

import time
from collections.abc import Callable
from http.client import HTTPException
from io import BufferedIOBase, BufferedReader
from pathlib import Path, PurePosixPath
from reprlib import repr as brief
from urllib import request

from pyarrow.fs import FileSelector, FileSystem, FileType

from ..cancellation import check
from ..errors import RequestError
from ..models.lora_file import MAX_BYTES
from ..writing import whole

__all__ = ["Folder", "Opener", "fetch", "open_url"]

SILENCE, LONGEST = 20, 600  # seconds that a server may stay silent, and take for a file
PIECE = 2**20  # bytes to read, at most, between two checks for cancellation
STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
Opener = Callable[[str], BufferedIOBase]  # for a file that a request names; raises RequestError, OSError, ValueError
# Those of urlopen, but for file: and ftp:, to which a server may redirect.
HANDLERS = (
    request.DataHandler,
    request.HTTPDefaultErrorHandler,
    request.HTTPErrorProcessor,
    request.HTTPHandler,
    request.HTTPRedirectHandler,
    request.HTTPSHandler,
    request.ProxyHandler,
    request.UnknownHandler,
)


def open_url(url: str) -> BufferedIOBase:
    """Open a data: or http(s) URL. Raises RequestError for any other: file: would read the server's own files."""
    if url.partition(":")[0].lower() not in ("data", "http", "https"):
        raise RequestError(f"must be a data: or http(s) URL, not {brief(url)}")
    opener = request.OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    return opener.open(url, timeout=SILENCE)  # type: ignore[no-any-return]


def fetch(name: str, value: str, folder: Path, opened: Opener) -> Path:
    """The file that the input `name` names, copied to `folder`. Raises RequestError."""
    path, end = folder / name, time.monotonic() + LONGEST
    try:
        with opened(value) as source, path.open("wb") as copy:
            while piece := source.read1(PIECE):  # what is there, so that a slow server does not hold up the check
                check()
                copy.write(piece)
                if copy.tell() > MAX_BYTES:
                    raise RequestError(f"is larger than {MAX_BYTES:,} bytes")
                if time.monotonic() > end:
                    raise RequestError(f"took longer than {LONGEST} seconds to fetch")
            if getattr(source, "length", None):  # that an HTTP server has announced and not sent
                raise RequestError("was cut short by its server")
    except RequestError as error:
        raise RequestError(f"{name} {error}") from error
    except (OSError, ValueError, HTTPException) as error:  # ValueError: a malformed URL
        raise RequestError(f"{name}: {brief(value)} can't be read: {error}") from error
    return path


class Folder:
    """A folder on this machine, or in a store that pyarrow knows."""

    def __init__(self, place: str) -> None:
        """place: a path, or a URL such as s3://bucket/folder. Raises RequestError for any other."""
        self.place = place if "://" in place else str(Path(place).absolute())
        uri = self.place if "://" in place else Path(self.place).as_uri()
        try:
            self._files, self._path = FileSystem.from_uri(uri)
        except (ValueError, OSError) as error:
            raise RequestError(f"{place} is neither a path nor a URL that pyarrow knows: {error}") from error

    @property
    def local(self) -> Path | None:
        """Its path on this machine; None in a store."""
        return Path(self._path) if self._files.type_name == "local" else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, on this machine completely or not at all, as object stores do."""
        if self.local is None:
            with self._files.open_output_stream(f"{self._path}/{name}") as file:
                file.write(data)
            return
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as unfinished:
            unfinished.write_bytes(data)

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        with self._files.open_input_stream(f"{self._path}/{name}") as file:
            return bytes(file.read())

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._files.delete_file(f"{self._path}/{name}")

    def names(self, folder: str) -> list[str]:
        """The files in a folder in it, without hidden ones."""
        found = self._files.get_file_info(FileSelector(f"{self._path}/{folder}", allow_not_found=True))
        return [one.base_name for one in found if one.type is FileType.File and not one.base_name.startswith(".")]

    def open(self, name: str) -> BufferedIOBase:
        """Open a file that a line of a batch names: one in this folder, or any URL. Raises RequestError."""
        scheme, colon, _ = name.partition(":")
        if colon and scheme.lower() in STORES:
            files, path = FileSystem.from_uri(name)
            return BufferedReader(files.open_input_stream(path))
        if colon:
            return open_url(name)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise RequestError(f"must be beside the requests, or a URL, not {brief(name)}")
        return BufferedReader(self._files.open_input_stream(f"{self._path}/{name}"))
