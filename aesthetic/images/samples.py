"""Convert samples of more than 8 bits to 8 bits, and refuse TIFFs whose samples have no known range."""

from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

__all__ = ["REMEDY", "in_8_bits", "require_readable"]

REMEDY = "save it with 8 bits a sample, or as PNG"
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, FORMAT = 254, 258, 259, 262, 277, 284, 339  # tags of TIFF 6.0
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # values of FORMAT
KINDS = {UNSIGNED: "unsigned integers", SIGNED: "signed integers", FLOAT: "floats"}


def require_readable(tags: ImageFileDirectory_v2) -> None:
    """Raise ValueError for a TIFF whose samples have no known range, or that Pillow would misread.

    A TIFF that begins with a thumbnail is refused too: the image that follows is a camera's raw data.
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
    """The image with 8 bits a channel; unchanged if it has 8 already.

    16-bit gray keeps the high byte, as Pillow does for 16-bit RGB; floats are scaled from 0..1. Raises ValueError for
    floats outside of this range.
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
    if not (least >= 0 and most <= 1):  # True for nan, too
        raise ValueError(f"its floats go from {least:g} to {most:g}; those from 0 to 1 are read")
    scaled = values * np.float32(255)
    return np.rint(scaled, out=scaled)
