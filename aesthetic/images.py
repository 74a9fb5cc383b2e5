"""Pictures from a user: one picture, a zip or tar of them, or a folder, as RGB images.

Everything that comes in here is hostile until shown otherwise. Archives are read as streams and in memory,
never unpacked to disk; what they claim about themselves is checked before it is believed, and what they
hold is counted while it is read. Nothing here knows what the pictures are for.
"""

import bz2
import gzip
import hashlib
import io
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import PictureError

__all__ = ["LOCAL", "UPLOAD", "Caps", "Picture", "read_pictures"]

MEGABYTE = 10**6
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True, kw_only=True)
class Caps:
    """How much is read before it is refused. None: no limit."""

    pictures: int | None  # in one folder or archive
    total_bytes: int | None  # of all that an archive unpacks to
    picture_bytes: int = 100 * MEGABYTE  # of one encoded picture
    picture_pixels: int = 100 * MEGABYTE  # of one decoded picture; the largest phone cameras have 200 million


UPLOAD = Caps(pictures=500, total_bytes=500 * MEGABYTE)
LOCAL = Caps(pictures=None, total_bytes=None)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture: its name in the folder or archive, RGB pixels, and the sha256 of its encoded bytes."""

    name: str
    image: Image.Image
    sha256: str


def read_pictures(path: Path, caps: Caps) -> Iterator[Picture]:
    """The pictures at `path`, one at a time, in the order of their names (in a tar: in its own order).

    path: a picture, a zip, a tar (plain, gzip or bzip2), or a folder with folders in it. What a file is,
    its first bytes say, not its name. Inside folders and archives, what has no picture's suffix, and
    what is hidden, is passed over.

    Pictures are turned upright by their EXIF orientation; transparency is laid on white; of an animation the
    first frame counts; CMYK, palette, grey and 16-bit pictures become 8-bit RGB.

    Raises PictureError for whatever cannot be read in full or goes beyond `caps`, and if there is no picture.
    """
    count = 0
    for member, data in _members(path, caps):
        name = _shown(member)
        count += 1
        if caps.pictures is not None and count > caps.pictures:
            raise PictureError(
                f"{path.name} holds more than {caps.pictures} pictures; make an aesthetic from so many with "
                "'python -m aesthetic embed' and send the file"
            )
        yield Picture(name=name, image=_decode(name, data, caps), sha256=hashlib.sha256(data).hexdigest())
    if count == 0:
        raise PictureError(f"{path.name} holds no picture ({', '.join(sorted(SUFFIXES))})")


def _members(path: Path, caps: Caps) -> Iterator[tuple[str, bytes]]:
    """Name and encoded bytes of everything at `path` that should be a picture."""
    if path.is_dir():
        yield from _folder(path, caps)
        return
    if not path.is_file():
        raise PictureError(f"there is no file {path}; a picture, a zip, a tar or a folder was expected")
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if not start:
            raise PictureError(f"{path.name} is empty; a picture, a zip or a tar was expected")
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip(path.name, file, caps)
        elif start.startswith(b"\x1f\x8b"):
            yield from _tar(path.name, gzip.GzipFile(fileobj=file), caps)
        elif start.startswith(b"BZh"):
            yield from _tar(path.name, bz2.BZ2File(file), caps)
        elif start[257:262] == b"ustar":
            yield from _tar(path.name, file, caps)
        else:
            yield path.name, _read(path.name, file, caps.picture_bytes)


def _folder(folder: Path, caps: Caps) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and _is_picture(name):
            with path.open("rb") as file:
                yield name, _read(name, file, caps.picture_bytes)


def _zip(archive: str, file: IO[bytes], caps: Caps) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(file) as members:
            infos = sorted(members.infolist(), key=lambda info: info.filename)
            for info in infos:
                _check_name(archive, info.filename)
            wanted = [info for info in infos if not info.is_dir() and _is_picture(info.filename)]
            _check_total(archive, sum(info.file_size for info in wanted), caps)
            for info in wanted:
                # zipfile also knows LZMA, whose headers may ask for gigabytes of memory.
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise PictureError(f"{_shown(info.filename)} in {archive} is not stored or deflated")
                if info.flag_bits & 0x1:
                    raise PictureError(f"{_shown(info.filename)} in {archive} is encrypted")
                with members.open(info) as member:
                    yield info.filename, _read(info.filename, member, caps.picture_bytes)
    except PictureError:
        raise
    except Exception as error:  # whatever damage makes of zipfile and zlib
        raise PictureError(f"{archive} is a damaged zip: {error}") from error


def _tar(archive: str, file: BinaryIO | BufferedIOBase, caps: Caps) -> Iterator[tuple[str, bytes]]:
    counted = io.BufferedReader(_Counted(archive, file, caps))
    try:
        with tarfile.open(fileobj=counted, mode="r|") as members:
            for info in members:
                _check_name(archive, info.name)
                if not info.isfile() or not _is_picture(info.name):
                    continue
                member = members.extractfile(info)
                assert member is not None  # it is a file
                yield info.name, _read(info.name, member, caps.picture_bytes)
    except PictureError:
        raise
    except Exception as error:  # whatever damage makes of tarfile, zlib and bz2
        raise PictureError(f"{archive} is a damaged tar: {error}") from error


class _Counted(io.RawIOBase):
    """Unpacked bytes, counted before they are read: a tar's headers, too, can ask for gigabytes."""

    def __init__(self, archive: str, file: BinaryIO | BufferedIOBase, caps: Caps) -> None:
        self._archive, self._file, self._caps = archive, file, caps
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        self._total += len(data)
        _check_total(self._archive, self._total, self._caps)
        buffer[: len(data)] = data
        return len(data)


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _shown(name: str) -> str:
    """A name from an archive as it may be shown: it may be long, and may hold what acts on terminals."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name[:200])


def _check_name(archive: str, name: str) -> None:
    path = PureWindowsPath(name)  # splits at both kinds of slash
    if path.drive or path.root or ".." in path.parts:
        raise PictureError(f"{archive} holds {_shown(name)}, which points outside of the archive")


def _check_total(archive: str, total: int, caps: Caps) -> None:
    if caps.total_bytes is not None and total > caps.total_bytes:
        raise PictureError(f"{archive} unpacks to more than {caps.total_bytes // MEGABYTE} MB")


def _read(name: str, file: IO[bytes], limit: int) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise PictureError(f"{_shown(name)} is larger than {limit // MEGABYTE} MB")
    return data


def _decode(name: str, data: bytes, caps: Caps) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes below its own limit and of odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > caps.picture_pixels:
                    raise Image.DecompressionBombError
                return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} has more than {caps.picture_pixels // 10**6} million pixels") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise PictureError(f"{name} is neither a picture ({kinds}) nor a zip or tar of pictures") from error
    except Exception as error:  # whatever a damaged file makes of Pillow's many decoders
        raise PictureError(f"{name} is a damaged picture: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, on white where it is transparent."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip instead of scale
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
