"""Files in a folder, a zip or a tar, read within limits and not decoded.

Archives are read as streams in memory, never unpacked to disk. Their headers are untrusted: sizes are checked before
memory is allocated, and data is counted while it is read.
"""

import bz2
import gzip
import io
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from ..cancellation import check
from ..errors import ImageError, printable
from .formats import NAMES, format_of, is_image

__all__ = ["LOCAL", "UPLOAD", "Caps", "members", "read_file", "readable"]

Member = tuple[str, Callable[[], bytes] | None]  # a name, and the reader of an image; None for other files

MEGABYTE = 10**6
PIECE = 2**16  # bytes to read between two checks for cancellation
LISTING = 512  # bytes of a zip's central directory for one file: 46, a long path and time stamps


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Limits on reading."""

    images: float = math.inf  # in one folder or archive
    total_bytes: float = math.inf  # of an archive, packed and unpacked
    total_pixels: float = math.inf  # of all images in it
    entries: int = 100_000  # of an archive, images or not
    image_bytes: int = 100 * MEGABYTE  # of one encoded image
    image_pixels: int = 16384 * 12288  # of one decoded image: 201 million, as of the largest phone cameras
    image_memory: float = math.inf  # bytes, to decode one image and convert its colors


# In all, an upload takes at most 1 GiB of memory: CLIP's input of 500 images takes 300 MB beside the one that is read.
UPLOAD = Caps(
    images=500,
    total_bytes=500 * MEGABYTE,
    total_pixels=2000 * MEGABYTE,
    entries=5000,
    image_memory=750 * MEGABYTE,
)
LOCAL = Caps()


def members(path: Path, caps: Caps, label: str) -> Iterator[Member]:
    """Every file at `path` that is not hidden, in the order of names (in a tar, in its own order).

    path:  a folder, a zip, a tar (plain, gzip or bzip2), or an image, which is then the only member. The first bytes
           of a file tell which; inside of an archive or folder, the suffix tells images.
    label: the name of the archive in messages.

    Call a reader before you request the next member. Names are untrusted: don't use them as paths.

    Raises ImageError if the archive exceeds `caps` or is damaged; readers raise it for their own file.
    """
    if path.is_dir():
        yield from _folder(path, caps)
        return
    if not path.is_file():
        raise ImageError(f"there is no file {path}; an image, a zip, a tar or a folder was expected")
    with path.open("rb", buffering=0) as raw, _Bounded(raw, label, caps) as file:
        start = file.read(512)
        file.seek(0)
        if not start:
            raise ImageError(f"{label} is empty; an image, a zip or a tar was expected")
        archive = _kind(start)
        if archive is not None:
            if (size := path.stat().st_size) > caps.total_bytes:
                most = f"an archive may have at most {caps.total_bytes // MEGABYTE} MB"
                raise ImageError(f"{label} has {size // MEGABYTE} MB; {most}")
            yield from archive(label, file, caps)
        elif format_of(start) is None:
            raise ImageError(f"{label} is neither an image ({NAMES}) nor a zip or tar of images (plain, gzip or bzip2)")
        else:
            yield label, partial(_read, label, file, caps.image_bytes)


def read_file(path: Path, name: str, limit: int) -> bytes:
    """The content of a file. Raises ImageError, with `name` in it, for more than `limit` bytes."""
    try:
        with path.open("rb") as file:
            return _read(name, file, limit)
    except OSError as error:
        raise ImageError(f"{printable(name)} can't be read: {error.strerror}") from error


@contextmanager
def readable(message: str) -> Iterator[None]:
    """Raise the errors of zipfile, tarfile, zlib, bz2 and Pillow as ImageError, with `message` in front."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{message}: it needs more memory than is left") from error
    except Exception as error:  # these libraries raise almost anything for damaged files
        raise ImageError(f"{message}: {printable(str(error)) or type(error).__name__}") from error


def _kind(start: bytes) -> Callable[[str, "_Bounded", Caps], Iterator[Member]] | None:
    """The reader of an archive that starts with these bytes; None for other files."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip
    if start.startswith(b"\x1f\x8b"):
        return lambda archive, file, caps: _tar(archive, gzip.GzipFile(fileobj=file), caps)
    if start.startswith(b"BZh"):
        return lambda archive, file, caps: _tar(archive, bz2.BZ2File(file), caps)
    return _tar if start[257:262] == b"ustar" else None


def _folder(folder: Path, caps: Caps) -> Iterator[Member]:
    for path in sorted(folder.rglob("*")):
        check()
        name = path.relative_to(folder).as_posix()
        if (path.is_file() or not path.exists()) and not _is_hidden(name):  # a broken link is an unreadable file
            yield name, partial(read_file, path, name, caps.image_bytes) if is_image(name) else None


def _zip(archive: str, file: "_Bounded", caps: Caps) -> Iterator[Member]:
    with readable(f"{archive} is a zip that can't be read"), zipfile.ZipFile(file) as content:
        _check_entries(archive, len(content.infolist()), caps)
        infos = [info for info in content.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
        _check_total(archive, sum(info.file_size for info in infos if is_image(info.filename)), caps)
        for info in sorted(infos, key=lambda info: info.filename):
            check()
            reader = partial(_read_zipped, archive, content, info, caps.image_bytes)
            yield info.filename, reader if is_image(info.filename) else None


def _read_zipped(archive: str, content: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    name = f"{printable(info.filename)} in {archive}"
    # zipfile also reads LZMA, whose headers can demand gigabytes of memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(f"{name} is not stored or deflated")
    if info.flag_bits & 0x1:
        raise ImageError(f"{name} is encrypted")
    with readable(f"{name} can't be read"), content.open(info) as member:
        return _read(info.filename, member, limit)


def _tar(archive: str, file: BufferedIOBase, caps: Caps) -> Iterator[Member]:
    counted: Any = _Counted(archive, file, caps)
    with readable(f"{archive} is a tar that can't be read"), tarfile.open(fileobj=counted, mode="r|") as content:
        for number, info in enumerate(content, start=1):
            _check_entries(archive, number, caps)
            if info.issparse():  # the holes take no bytes in the archive, so they are not counted
                raise ImageError(f"{archive} holds {printable(info.name)}, which is a sparse file")
            if info.isdir() or _is_hidden(info.name):
                continue
            reader = partial(_read_tarred, archive, content, info, caps.image_bytes)
            yield info.name, reader if is_image(info.name) else None
        _require_end(archive, content)


def _require_end(archive: str, content: tarfile.TarFile) -> None:
    """Raise ImageError unless at least a block of zeros follows, and only zeros: tarfile takes damage for the end."""
    assert content.fileobj is not None
    ending = content.fileobj.read(PIECE)
    if not ending:
        raise ImageError(f"{archive} is a tar that was cut short")
    while ending:
        check()
        if ending.strip(b"\0"):
            raise ImageError(f"{archive} is a tar with a damaged header, or with data after its end")
        ending = content.fileobj.read(PIECE)  # up to gzip's checksum at the end


def _read_tarred(archive: str, content: tarfile.TarFile, info: tarfile.TarInfo, limit: int) -> bytes:
    if not info.isfile():
        raise ImageError(f"{printable(info.name)} in {archive} is a link, not a file")
    with readable(f"{archive} is a tar that can't be read"):  # after damage, the rest of the stream is lost
        member = content.extractfile(info)
        assert member is not None  # it is a file
        return _read(info.name, member, limit)


class _Bounded(io.BufferedReader):
    """A file that limits a single read to the size of the largest zip directory allowed.

    zipfile reads a central directory of any size that the archive claims in one call, and parses all of it.
    """

    def __init__(self, raw: io.RawIOBase, archive: str, caps: Caps) -> None:
        super().__init__(raw)
        self._archive, self._entries = archive, caps.entries

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > max(MEGABYTE, LISTING * self._entries):
            raise ImageError(
                f"{self._archive} needs {size:,} bytes to list its files; "
                f"{LISTING * self._entries:,} are read, for at most {self._entries} files"
            )
        return super().read(size)


class _Counted:
    """Counts unpacked bytes as tarfile reads them, in blocks of 10 kB: a tar's headers can demand gigabytes, too."""

    def __init__(self, archive: str, file: BufferedIOBase, caps: Caps) -> None:
        self._archive, self._file, self._caps, self._total = archive, file, caps, 0

    def read(self, size: int) -> bytes:
        check()
        data = self._file.read(size)
        self._total += len(data)
        _check_total(self._archive, self._total, self._caps)
        return data


def _is_hidden(name: str) -> bool:
    parts = PureWindowsPath(name).parts  # split at both kinds of slash
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts)


def _check_entries(archive: str, count: int, caps: Caps) -> None:
    if count > caps.entries:
        raise ImageError(f"{archive} holds more than {caps.entries} files")


def _check_total(archive: str, total: int, caps: Caps) -> None:
    if total > caps.total_bytes:
        raise ImageError(f"{archive} unpacks to more than {caps.total_bytes // MEGABYTE} MB")


def _read(name: str, file: IO[bytes], limit: int) -> bytes:
    data = bytearray()
    while piece := file.read(PIECE):
        check()
        data += piece
        if len(data) > limit:
            raise ImageError(f"{printable(name)} is larger than {limit // MEGABYTE} MB")
    return bytes(data)
