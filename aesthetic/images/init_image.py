"""The init image of a request and its mask, in the size to draw; pipeline/img2img.py encodes them."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError, naming_input
from ..request import SIZES, Request
from . import user_images

__all__ = ["InitImage", "fitted", "load_init_image"]

log = logging.getLogger(__name__)

STEP = SIZES[1] - SIZES[0]  # pixels
CORNERS = 0.01  # share of a mask's pixels; a smaller transparent part, as rounded corners, is ignored
HALF = 128  # gray level, 0..255, from which a mask counts as white
PAINT = 250  # gray level from which a visible part of a mask counts as white paint, even over a white image
SAME = 16  # mean difference in levels, 0..255, below which a mask was cut out of the image


@dataclass(frozen=True, kw_only=True)
class InitImage:
    """An image to start from.

    image: RGB, in the size to draw.
    mask:  gray, of the same size: white is redrawn, black is kept; None redraws everything.
    files: the sha256 of each file, by the name of its input.
    """

    image: Image.Image
    mask: Image.Image | None
    files: dict[str, str]


def load_init_image(request: Request) -> InitImage | None:
    """The init image and mask of a request; None if it has no image. Raises ImageError."""
    if request.image is None:
        return None
    given = _read("image", user_images.read_image, request.image)
    size = fitted(given.size, (request.width, request.height))
    image, files = ImageOps.fit(given.image, size), {"image": given.sha256}
    if request.mask is None:
        return InitImage(image=image, mask=None, files=files)
    mask = _read("mask", user_images.read_mask, request.mask)
    with naming_input("mask"):
        _require_one_shape(mask.size, given.size)
        gray = _gray(mask.image, image)
    return InitImage(image=image, mask=gray, files={**files, "mask": mask.sha256})


def fitted(image: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The size to draw an image in: the largest of its shape that fits into the frame.

    One side is the frame's, the other is rounded to a multiple of 64 from 128 on. Fitting into a size that this
    function returned gives it back unchanged, so a recipe may store either.

    Raises ImageError if cropping to that shape would leave less than half of the image.
    """
    width, height = image
    sizes = (frame[0], _rounded(frame[0] * height / width)), (_rounded(frame[1] * width / height), frame[1])
    size = max((one for one in sizes if one[0] <= frame[0] and one[1] <= frame[1]), key=math.prod)
    less, more = sorted((size[0] * height, size[1] * width))
    if 2 * less < more:
        raise ImageError(
            f"image: of {width} × {height} pixels, less than half would be left within "
            f"{frame[0]} × {frame[1]}, whose sides are multiples of {STEP} from {SIZES[0]}: crop it first"
        )
    return size


def _rounded(side: float) -> int:
    return max(SIZES[0], STEP * round(side / STEP))


def _read(name: str, read: Callable[..., user_images.UserImage], path: Path) -> user_images.UserImage:
    with naming_input(name):
        return read(path, user_images.UPLOAD, label="the file")  # the names of uploads tell nothing


def _gray(mask: Image.Image, image: Image.Image) -> Image.Image:
    """An RGBA mask as gray, in the size of `image`: white is redrawn.

    An opaque mask gives its brightness. A mask with transparent parts gives its alpha channel:

    - if all visible parts are white, they were painted on a transparent layer and are redrawn;
    - if all visible parts are black, or show the image itself, the transparent parts were erased and are redrawn.

    Raises ImageError for other transparent masks, and if nothing is white; warns if nothing is black.
    """
    gray = _from_alpha(ImageOps.fit(mask, image.size), image)
    if gray is None:
        black = Image.new("L", mask.size, "black")
        black.paste(mask.convert("L"), mask=mask.getchannel("A"))
        gray = ImageOps.fit(black, image.size)
    least, most = (int(level) for level in gray.getextrema())  # type: ignore[arg-type]
    if most < HALF:
        raise ImageError("nothing in it is white and opaque, and only that is redrawn")
    if least >= HALF:
        log.warning("mask: nothing in it is black, so all of the image is redrawn")
    return gray


def _from_alpha(mask: Image.Image, image: Image.Image) -> Image.Image | None:
    """The mask in the alpha channel; None for a mask that is all opaque or all transparent, or but for its corners."""
    alpha = np.asarray(mask.getchannel("A"))
    seen = alpha >= HALF
    if seen.all() or not seen.any():
        return None
    visible, shown = np.asarray(mask.convert("RGB"))[seen].astype(int), np.asarray(image)[seen]
    is_image = visible.min() < PAINT and abs(visible - shown).mean() < SAME
    if visible.max() < HALF or is_image:
        log.info("mask: redraws what is transparent in it")
        return Image.fromarray(255 - alpha)
    if visible.min() >= HALF:
        log.info("mask: redraws what is white on its transparent layer")
        return Image.fromarray(alpha)
    if 1 - seen.mean() < CORNERS:
        return None
    raise ImageError(
        "it is transparent in places, and elsewhere neither white, nor black, nor the image: paint what to redraw in "
        "white, on black or on a transparent layer, or erase it from a copy of the image"
    )


def _require_one_shape(mask: tuple[int, int], image: tuple[int, int]) -> None:
    if abs(mask[0] * image[1] - mask[1] * image[0]) > max(image):  # more than a pixel, which scaling may have cost
        sizes = f"it has {mask[0]} × {mask[1]} pixels and image {image[0]} × {image[1]}"
        raise ImageError(f"{sizes}: give both the same shape")
