"""Recognize an image's format by its first bytes, and open it without decoding its pixels.

Each format is opened by its own Pillow class, since the limit on pixels in Image.open is a global variable; callers
apply their own limit.
"""

import io
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import PurePosixPath

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..cancellation import check
from . import color, samples

__all__ = ["NAMES", "SUFFIXES", "bytes_per_pixel", "format_of", "is_image", "open_image"]

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
# Suffixes that Pillow does not register: HEIC, cameras' raw files, and other formats, of which only HEIC is read.
MORE = (
    ".heic .heics .heif .heifs .hif .insp .jps .pns .3fr .ari .arq .arw .bay .cr2 .cr3 .crw .dcr .dcs .dng .drf .eip "
    ".erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .ptx .pxn .raf .raw .rw2 .rwl .rwz .sr2 .srf "
    ".srw .x3f .bpg .exr .flif .hdr .ief .jls .jph .jpm .jxl .jxr .kra .ora .pam .pct .pict .psb .svg .svgz .wbmp .wdp "
    ".xcf .xwd"
)
SCAN = b"\xff\xda"  # the marker before each scan of a JPEG
NO_IMAGES = ".bufr .grib .h5 .hdf .iim .mpeg .mpg .pdf .ps"  # of the suffixes that Pillow registers
MAX_CHUNKS = 100_000  # of a PNG: a hundred megabytes in pieces of a kilobyte
MAX_SCANNED = 2 * 10**9  # pixels of a JPEG times its scans, each of which passes over all pixels and may take 42 bytes
# Memory that a pixel takes at most, to be decoded and converted, as tests/images/test_memory.py measures it. A large
# JPEG is decoded at a fraction of its size.
BYTES = {"PNG": 14, "JPEG": 3, "WEBP": 22, "GIF": 11, "BMP": 9, "TIFF": 14, "AVIF": 19, "HEIC": 14}
PROGRESSIVE = 13  # of a JPEG in several scans, which libjpeg keeps in memory as a whole


def is_image(name: str) -> bool:
    """Whether `name` has an image's suffix. Formats that can't be read count too: they are errors, not other files."""
    return PurePosixPath(name.rstrip(" .\t\r\n")).suffix.lower() in _suffixes()


@cache
def _suffixes() -> frozenset[str]:
    return frozenset(Image.registered_extensions()) - {*NO_IMAGES.split()} | {*MORE.split()}


def format_of(data: bytes) -> str | None:
    """The format of an encoded image; None if it is not read."""
    return next((name for name, (start, _) in _FORMATS.items() if re.match(start, data[:64], re.DOTALL)), None)


def open_image(name: str, data: bytes) -> ImageFile:
    """An image of the format `name`, not decoded yet. Raises any Exception, as Pillow does, for a damaged image."""
    return _FORMATS[name][1](data)


def bytes_per_pixel(name: str, image: ImageFile) -> int:
    """The memory, in bytes, that a pixel of an opened image of the format `name` takes at most until it is sRGB."""
    return PROGRESSIVE if name == "JPEG" and image.info.get("progressive") else BYTES[name]


def _open_jpeg(data: bytes) -> ImageFile:
    image, scans = JpegImageFile(file := _Checked(data)), data.count(SCAN)
    if scans * image.width * image.height > MAX_SCANNED:
        raise ValueError(f"it has {scans} scans of {image.width} × {image.height} pixels; save it anew")
    first = file.tell() - 2 * image.layers - 8  # where the header of the first scan begins if it is of all layers
    if data[first : first + 2] != SCAN:
        image.info["progressive"] = 1
    return image


def _open_png(data: bytes) -> ImageFile:
    image, depth = PngImageFile(_Checked(_without_texts(data))), data[24]
    image.info["icc_profile"] = _profile(data)
    transparent = image.info.get("transparency")  # at the file's bit depth, while Pillow's pixels have 8 bits
    if image.mode == "RGB" and depth == 16 and transparent is not None:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    elif image.mode == "L" and transparent is not None:
        image.info["transparency"] = transparent * 255 // (2**depth - 1)
    return image


def _open_tiff(data: bytes) -> ImageFile:
    try:
        image = TiffImageFile(_Checked(data))
    except SyntaxError as error:  # a damaged header, or samples without a mode in Pillow
        raise ValueError(f"{error}; {samples.REMEDY}") from error
    samples.require_readable(image.tag_v2)
    return image


def _open_heic(data: bytes) -> ImageFile:
    from pillow_heif import HeifImageFile  # takes 40 ms; does not register with Pillow

    return _by(HeifImageFile)(data)


class _Checked(io.BytesIO):
    """An encoded image that checks for cancellation at each read: a file may have millions of parts."""

    def read(self, size: int | None = -1, /) -> bytes:
        check()
        return super().read(size)


def _by(kind: type[ImageFile]) -> Callable[[bytes], ImageFile]:
    return lambda data: kind(_Checked(data))


_FORMATS: dict[str, tuple[bytes, Callable[[bytes], ImageFile]]] = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", _open_png),
    "JPEG": (rb"\xff\xd8\xff", _open_jpeg),
    "WEBP": (rb"RIFF.{4}WEBP", _by(WebPImageFile)),
    "GIF": (rb"GIF8[79]a", _by(GifImageFile)),
    "BMP": (rb"BM", _by(BmpImageFile)),
    "TIFF": (rb"(II[*+]\0|MM\0[*+])(?!.{4}CR)", _open_tiff),  # CR: a Canon raw file
    "AVIF": (rb".{4}ftyp(.{4})*?avi[fs]", _by(AvifImageFile)),
    "HEIC": (rb".{4}ftyp(.{4})*?(hei[cxms]|hev[cxms]|mif1|msf1)", _open_heic),
}
NAMES = ", ".join(_FORMATS)


def _without_texts(png: bytes) -> bytes:
    """The file without color profile and texts, except the first EXIF and XMP, which hold the orientation."""
    parts, missing = [png[:8]], {b"Raw profile type exif", b"XML:com.adobe.xmp"}
    for chunk in _chunks(png):
        kind, content = chunk[4:8], chunk[8:-4]
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            keyword, _, rest = content.partition(b"\0")
            if kind == b"iCCP" or keyword not in missing:
                continue
            missing.remove(keyword)
            if _is_bomb(kind, rest):
                continue
        parts.append(chunk)
    return b"".join(parts)


def _profile(png: bytes) -> bytes | None:
    """The color profile, cut to one byte more than color.py accepts. Pillow itself refuses more than 1 MB."""
    for chunk in _chunks(png):
        if chunk[4:8] == b"iCCP":
            packed = chunk[8:-4].partition(b"\0")[2][1:]
            try:
                return zlib.decompressobj().decompress(packed, color.MAX_PROFILE + 1)
            except zlib.error as error:
                log.warning("Ignored a color profile: %s", error)
    return None


def _chunks(png: bytes) -> Iterator[bytes]:
    """The chunks up to the end of the image. Raises ValueError if there are too many."""
    at = 8
    for _ in range(MAX_CHUNKS):
        check()
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        yield png[at:end]
        if end >= len(png) or png[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise ValueError(f"it has more than {MAX_CHUNKS:,} chunks")


def _is_bomb(kind: bytes, text: bytes) -> bool:
    """Whether the text after a keyword unpacks to more than Pillow reads."""
    is_packed_text = kind == b"iTXt" and text[:1] == b"\1"
    packed = text[2:].split(b"\0", 2)[-1] if is_packed_text else text[1:]
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, MAX_TEXT_CHUNK)
    except zlib.error:  # not packed, or damaged, which Pillow skips
        return False
    return bool(unpacker.unconsumed_tail)
