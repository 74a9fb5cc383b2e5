"""Images from a user: one image, or all of a folder or an archive, decoded within limits as upright 8-bit images.

Files are untrusted. archives.py reads them, formats.py opens them, samples.py and color.py interpret their values.
"""

import hashlib
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import ImageError, printable
from . import color, samples
from .archives import LOCAL, UPLOAD, Caps, members, read_file, readable
from .formats import NAMES, SUFFIXES, bytes_per_pixel, format_of, open_image

__all__ = ["LOCAL", "UPLOAD", "Caps", "UserImage", "read_image", "read_images", "read_mask"]

log = logging.getLogger(__name__)

MAX_ASPECT = 50  # CLIP scales the shorter side to 224 pixels, which makes gigabytes of a thin line
LARGE = 80 * 10**6  # pixels of a JPEG above which it is decoded at a fraction of its size
ENOUGH = 2048  # pixels of each side at least: twice what the model draws, nine times CLIP's input
NAMED = 20  # unreadable images that one error lists
BAD_EXIF = (ArithmeticError, AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error)


@dataclass(frozen=True, kw_only=True)
class UserImage:
    """One image from a user.

    name:   in the folder or archive; else the label.
    image:  upright, with 8 bits a channel.
    size:   width and height in the file, upright; `image` may be smaller.
    sha256: of the encoded bytes.
    """

    name: str
    image: Image.Image
    size: tuple[int, int]
    sha256: str


def read_images(
    path: Path,
    caps: Caps,
    *,
    label: str | None = None,
    skip_unreadable: bool = False,
    on_left_out: Callable[[str], object] = lambda _: None,
) -> Iterator[UserImage]:
    """The images at `path` in RGB, one at a time, in the order of their names (in a tar: in its own order).

    path: an image, a zip, a tar (plain, gzip or bzip2), or a folder with its subfolders; the first bytes of a file tell
    which. In folders and archives, files without the suffix of an image are skipped with a warning, hidden ones
    without.
    label: the name in messages; None is the file's own.
    skip_unreadable: skip unreadable images, with a warning that lists them. Otherwise nothing is yielded from the first
    one on; the rest is still checked, and the error lists the first 20.
    on_left_out: called with the reason for each file that is skipped.

    Images are turned upright by their EXIF orientation, converted to sRGB by their color profile, and laid on white
    where they are transparent. Of an animation, the first frame is read. A JPEG of more than 80 million pixels is
    decoded at a half, a quarter or an eighth of its width and height.

    Raises ImageError for unreadable images, for anything beyond `caps`, and if there is no image.
    """
    label = label or path.name
    pixels, unreadable, passed_over, count = 0, list[str](), list[str](), 0
    for name, read in members(path, caps, label):
        if read is None:
            passed_over.append(printable(name))
            on_left_out(f"{printable(name)} is not an image, by its suffix")
            continue
        count += 1
        _check_count(label, count, caps)
        image, areas = None, list[int]()
        try:
            image = _decoded(printable(name), read(), caps, color.on_white, areas)
        except ImageError as error:
            unreadable.append(str(error))
            on_left_out(str(error))
        pixels += sum(areas)
        if pixels > caps.total_pixels:
            raise ImageError(f"{label} holds more than {caps.total_pixels:,} pixels in all")
        if image is not None and (skip_unreadable or not unreadable):
            yield image
    if unreadable and not skip_unreadable:
        raise ImageError(_listed(unreadable))
    _report(label, count, unreadable, passed_over)


def read_image(path: Path, caps: Caps, *, label: str | None = None) -> UserImage:
    """The single image in a file, prepared as by `read_images`. Raises ImageError."""
    return _read_one(path, caps, label, color.on_white)


def read_mask(path: Path, caps: Caps, *, label: str | None = None) -> UserImage:
    """The single image in a file, in RGBA without color conversion. Raises ImageError."""
    return _read_one(path, caps, label, color.with_alpha)


def _read_one(path: Path, caps: Caps, label: str | None, finish: Callable[[Image.Image], Image.Image]) -> UserImage:
    if not path.is_file():
        raise ImageError(f"there is no file {path}; an image was expected")
    label = label or path.name
    return _decoded(label, read_file(path, label, caps.image_bytes), caps, finish, [])


def _decoded(
    name: str, data: bytes, caps: Caps, finish: Callable[[Image.Image], Image.Image], areas: list[int]
) -> UserImage:
    """The image in `data`. Its number of pixels is added to `areas` before they are decoded, which may fail."""
    kind = format_of(data)
    if kind is None:
        problem = f"is not an image of a format that is read ({NAMES})" if data else "is empty"
        raise ImageError(f"{name} {problem}")
    room = caps.image_memory - 2 * len(data)  # Pillow may read a copy
    # Pillow warns of odd metadata, and of sizes below its own limit.
    ignored = warnings.catch_warnings(action="ignore")
    with ignored, readable(f"{name} can't be read as {kind}"), open_image(kind, data) as image:
        size = image.size
        _check_size(name, size, caps)
        _check_memory(f"{name} is a {kind} of", size, bytes_per_pixel(kind, image), room)
        areas.append(size[0] * size[1])
        if isinstance(image, JpegImageFile) and size[0] * size[1] > LARGE:
            image.draft(None, (ENOUGH, ENOUGH))
        image.load()
        with suppress(*BAD_EXIF):  # the pixels may be whole where EXIF data is damaged
            ImageOps.exif_transpose(image, in_place=True)
        if (size[0] - size[1]) * (image.width - image.height) < 0:
            size = size[::-1]
        pixels = finish(samples.in_8_bits(image))
    return UserImage(name=name, image=pixels, size=size, sha256=hashlib.sha256(data).hexdigest())


def _check_size(name: str, size: tuple[int, int], caps: Caps) -> None:
    has = f"{name} has {size[0]} × {size[1]} pixels"
    if size[0] * size[1] > caps.image_pixels:
        raise ImageError(f"{has}; at most {caps.image_pixels:,} are read of one image")
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(f"{has}; one side may be at most {MAX_ASPECT} times the other")


def _check_memory(start: str, size: tuple[int, int], needed: int, room: float) -> None:
    """Raise ImageError if so many bytes of memory for each pixel are more than there is room for."""
    if size[0] * size[1] * needed > room:
        raise ImageError(
            f"{start} {size[0]} × {size[1]} pixels, and at most {room / needed / 1e6:.0f} million are read of such a "
            "file: make it smaller, or save it as a baseline JPEG"
        )


def _check_count(label: str, count: int, caps: Caps) -> None:
    if count > caps.images:
        raise ImageError(
            f"{label} holds more than {caps.images} images; make an aesthetic from so many with "
            "'aesthetic embed' and send the file"
        )


def _report(label: str, count: int, unreadable: list[str], passed_over: list[str]) -> None:
    """Log which files were left out. Raises ImageError if no image is left."""
    if count == 0:
        raise ImageError(f"{label} holds no image ({', '.join(SUFFIXES)})")
    if count == len(unreadable):
        raise ImageError(f"{label} holds no image that can be read:\n{_listed(unreadable)}")
    if unreadable:
        log.warning("Left out %d images that can't be read:\n%s", len(unreadable), "\n".join(unreadable))
    if passed_over:
        log.warning("Passed over %d files that are not images, for instance %s", len(passed_over), passed_over[0])


def _listed(unreadable: list[str]) -> str:
    more = len(unreadable) - NAMED
    return "\n".join(unreadable[:NAMED] + ([f"and {more} more images can't be read"] if more > 0 else []))
