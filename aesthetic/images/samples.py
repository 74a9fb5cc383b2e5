"""Pixels of more than 8 bits in 8 bits: which TIFFs have a known range, and what is white in it."""

from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

__all__ = ["REMEDY", "in_8_bits", "require_readable"]

REMEDY = "save it with 8 bits a sample, or as PNG"
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, FORMAT = 254, 258, 259, 262, 277, 284, 339  # of TIFF 6.0
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # values of FORMAT
KINDS = {UNSIGNED: "unsigned integers", SIGNED: "signed integers", FLOAT: "floats"}


def require_readable(tags: ImageFileDirectory_v2) -> None:
    """Raise ValueError for a TIFF whose samples have no known range, or that Pillow would misread.

    So does one that begins with a thumbnail: the image that follows it is the raw data of a camera.
    """
    bits, formats = max(tags.get(BITS, (1,))), set(tags.get(FORMAT, (UNSIGNED,)))
    if tags.get(SUBFILE, 0) & 1:
        raise ValueError("its first image is a thumbnail, as in the raw files of cameras; export it as PNG or JPEG")
    if (formats != {UNSIGNED} or bits > 16) and (formats, bits) != ({FLOAT}, 32):
        raise ValueError(f"{bits}-bit {KINDS.get(min(formats), 'samples')} have no known range; {REMEDY}")
    is_packed = tags.get(COMPRESSION, 1) != 1
    if bits == 16 and tags.get(SAMPLES, 1) > 1 and tags.get(PLANES, 1) == 2 and not is_packed:
        raise ValueError(f"Pillow misreads 16-bit planes without compression; {REMEDY}")
    if formats == {FLOAT} and is_packed and tags.prefix == b"MM":
        raise ValueError(f"Pillow misreads compressed big-endian floats; {REMEDY}")


def in_8_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel, scaled from the range of its samples; itself where it has them.

    16-bit RGB has 8 bits in Pillow already: so is 16-bit grey treated, which keeps the high byte. Raises ValueError
    for floats outside of 0 to 1.
    """
    if image.mode != "F" and not image.mode.startswith("I;16"):
        return image
    tags, values = getattr(image, "tag_v2", {}), np.asarray(image)
    gray = _from_floats(values) if image.mode == "F" else values >> (tags.get(BITS, (16,))[0] - 8)
    white_is_zero = tags and tags.get(PHOTOMETRIC, 0) == 0
    scaled = Image.fromarray((255 - gray if white_is_zero else gray).astype(np.uint8))
    if "transparency" in image.info:
        scaled.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    scaled.info["icc_profile"] = image.info.get("icc_profile")
    return scaled


def _from_floats(values: Any) -> Any:
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 1):  # so written, it refuses what is not a number, too
        raise ValueError(f"its floats go from {least:g} to {most:g}; those from 0 to 1 are read")
    return np.rint(values * 255)
