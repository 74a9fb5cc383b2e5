"""Pictures from a user: one picture, a zip or tar of them, or a folder, as RGB images.

Everything that comes in here is hostile until shown otherwise. Archives are read as streams and in memory,
never unpacked to disk; what they claim about themselves is checked before it is believed, and what they
hold is counted while it is read. Nothing here knows what the pictures are for.
"""

import bz2
import gzip
import hashlib
import io
import logging
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

__all__ = ["LOCAL", "UPLOAD", "Caps", "Picture", "read_picture", "read_pictures"]

log = logging.getLogger(__name__)

Member = tuple[str, bytes | None]  # a name, and the encoded bytes if it should be a picture

MEGABYTE = 10**6
ARCHIVES = "a zip or tar of pictures (plain, gzip or bzip2)"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MAX_ASPECT = 50  # CLIP scales the shorter side to 224 pixels: a thin line would become gigabytes


@dataclass(frozen=True, kw_only=True)
class Caps:
    """How much is read before it is refused. None: no limit."""

    pictures: int | None  # in one folder or archive
    total_bytes: int | None  # of all that an archive unpacks to
    total_pixels: int | None  # of all pictures in it, decoded
    entries: int = 100_000  # of an archive, pictures or not
    picture_bytes: int = 100 * MEGABYTE  # of one encoded picture
    picture_pixels: int = 100 * MEGABYTE  # of one decoded picture; the largest phone cameras have 200 million


UPLOAD = Caps(pictures=500, total_bytes=500 * MEGABYTE, total_pixels=2000 * MEGABYTE, entries=5000)
LOCAL = Caps(pictures=None, total_bytes=None, total_pixels=None)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture: its name in the folder or archive, RGB pixels, and the sha256 of its encoded bytes."""

    name: str
    image: Image.Image
    sha256: str


def read_pictures(path: Path, caps: Caps, *, label: str | None = None) -> Iterator[Picture]:
    """The pictures at `path`, one at a time, in the order of their names (in a tar: in its own order).

    path: a picture, a zip, a tar (plain, gzip or bzip2), or a folder with folders in it. What a file is,
    its first bytes say, not its name. Inside folders and archives, what has no picture's suffix is passed
    over with a warning, and what is hidden without one.
    label: what messages call it; its own name if None.

    Pictures are turned upright by their EXIF orientation; transparency is laid on white; of an animation the
    first frame counts; CMYK, palette, grey and 16-bit pictures become 8-bit RGB.

    Raises PictureError for whatever cannot be read in full or goes beyond `caps`, and if there is no picture.
    """
    label = label or path.name
    count = pixels = 0
    passed_over = []
    for member, data in _members(path, caps, label):
        name = _shown(member)
        if data is None:
            passed_over.append(name)
            continue
        count += 1
        if caps.pictures is not None and count > caps.pictures:
            raise PictureError(
                f"{label} holds more than {caps.pictures} pictures; make an aesthetic from so many with "
                "'python -m aesthetic embed' and send the file"
            )
        image = _decode(name, data, caps)
        pixels += image.width * image.height
        if caps.total_pixels is not None and pixels > caps.total_pixels:
            raise PictureError(f"{label} holds more than {caps.total_pixels:,} pixels in all")
        yield Picture(name=name, image=image, sha256=hashlib.sha256(data).hexdigest())
    if count == 0:
        raise PictureError(f"{label} holds no picture ({', '.join(sorted(SUFFIXES))})")
    if passed_over:
        log.warning("Passed over %d files that are no pictures, for instance %s", len(passed_over), passed_over[0])


def read_picture(path: Path, caps: Caps, *, label: str | None = None) -> Picture:
    """The one picture that `path` is, prepared as `read_pictures` does. Raises PictureError."""
    label = label or path.name
    if not path.is_file():
        raise PictureError(f"there is no file {path}; a picture was expected")
    with path.open("rb") as file:
        data = _read(label, file, caps.picture_bytes)
    image = _decode(label, data, caps, blame=f"no picture ({', '.join(FORMATS)})")
    return Picture(name=label, image=image, sha256=hashlib.sha256(data).hexdigest())


def _members(path: Path, caps: Caps, label: str) -> Iterator[Member]:
    """Everything at `path` that is not hidden."""
    if path.is_dir():
        yield from _folder(path, caps)
        return
    if not path.is_file():
        raise PictureError(f"there is no file {path}; a picture, a zip, a tar or a folder was expected")
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if not start:
            raise PictureError(f"{label} is empty; a picture, a zip or a tar was expected")
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip(label, file, caps)
        elif start.startswith(b"\x1f\x8b"):
            yield from _tar(label, gzip.GzipFile(fileobj=file), caps)
        elif start.startswith(b"BZh"):
            yield from _tar(label, bz2.BZ2File(file), caps)
        elif start[257:262] == b"ustar":
            yield from _tar(label, file, caps)
        else:
            yield label, _read(label, file, caps.picture_bytes)


def _folder(folder: Path, caps: Caps) -> Iterator[Member]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or _is_hidden(name):
            continue
        if not _is_picture(name):
            yield name, None
            continue
        with path.open("rb") as file:
            yield name, _read(name, file, caps.picture_bytes)


def _zip(archive: str, file: IO[bytes], caps: Caps) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(file) as members:
            infos = sorted(members.infolist(), key=lambda info: info.filename)
            _check_entries(archive, len(infos), caps)
            for info in infos:
                _check_name(archive, info.filename)
            infos = [info for info in infos if not info.is_dir() and not _is_hidden(info.filename)]
            _check_total(archive, sum(info.file_size for info in infos if _is_picture(info.filename)), caps)
            for info in infos:
                if not _is_picture(info.filename):
                    yield info.filename, None
                    continue
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


def _tar(archive: str, file: BinaryIO | BufferedIOBase, caps: Caps) -> Iterator[Member]:
    counted = io.BufferedReader(_Counted(archive, file, caps))
    try:
        with tarfile.open(fileobj=counted, mode="r|") as members:
            for number, info in enumerate(members, start=1):
                _check_entries(archive, number, caps)
                _check_name(archive, info.name)
                if info.issparse():  # its holes are not in the archive, and would not be counted
                    raise PictureError(f"{archive} holds {_shown(info.name)}, which is a sparse file")
                if info.isdir() or _is_hidden(info.name):
                    continue
                if not info.isfile() or not _is_picture(info.name):
                    yield info.name, None
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
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _shown(name: str) -> str:
    """A name from an archive as it may be shown: it may be long, and may hold what acts on terminals."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name[:200])


def _check_name(archive: str, name: str) -> None:
    path = PureWindowsPath(name)  # splits at both kinds of slash
    if path.root or ".." in path.parts:
        raise PictureError(f"{archive} holds {_shown(name)}, which points outside of the archive")


def _check_entries(archive: str, count: int, caps: Caps) -> None:
    if count > caps.entries:
        raise PictureError(f"{archive} holds more than {caps.entries} files")


def _check_total(archive: str, total: int, caps: Caps) -> None:
    if caps.total_bytes is not None and total > caps.total_bytes:
        raise PictureError(f"{archive} unpacks to more than {caps.total_bytes // MEGABYTE} MB")


def _read(name: str, file: IO[bytes], limit: int) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise PictureError(f"{_shown(name)} is larger than {limit // MEGABYTE} MB")
    return data


def _decode(
    name: str, data: bytes, caps: Caps, *, blame: str = f"neither a picture ({', '.join(FORMATS)}) nor {ARCHIVES}"
) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes below its own limit and of odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > caps.picture_pixels:
                    raise Image.DecompressionBombError
                if max(image.size) > MAX_ASPECT * min(image.size):
                    raise PictureError(
                        f"{name} has {image.width} × {image.height} pixels; "
                        f"one side may be at most {MAX_ASPECT} times the other"
                    )
                return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} has more than {caps.picture_pixels // 10**6} million pixels") from error
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is {blame}") from error
    except Exception as error:  # whatever a damaged file makes of Pillow's many decoders
        raise PictureError(f"{name} is a damaged picture: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, on white where it is transparent."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel have no known range")
    if image.mode.startswith("I;16"):  # which convert() would clip instead of scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
