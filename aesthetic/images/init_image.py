"""The image that a request starts from, and its mask, at the size that is drawn. Neither torch nor a model here."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError, naming_input
from ..request import SIZES, Request
from . import user_images

__all__ = ["InitImage", "fitted", "load_init_image"]

log = logging.getLogger(__name__)

CORNERS = 0.01  # of a mask's pixels: transparent places smaller than that, as rounded corners, mean nothing
HALF = 128  # of 256 levels of grey: from here on a mask is white
PAINT = 250  # of 256 levels: white paint over a white part of the image is paint, and not the image
SAME = 16  # levels of 255, on average, by which a mask may differ from the image that it was cut out of


@dataclass(frozen=True, kw_only=True)
class InitImage:
    """What is drawn over.

    image: RGB, in the size that is drawn.
    mask:  grey, of that size: white is redrawn, black is kept; None redraws everything.
    files: the sha256 of each file, by the name of its input.
    """

    image: Image.Image
    mask: Image.Image | None
    files: dict[str, str]


def load_init_image(request: Request) -> InitImage | None:
    """The canvas of a request; None if it has no image. Raises ImageError."""
    if request.image is None:
        return None
    picture = _read("image", user_images.read_picture, request.image)
    size = fitted(picture.size, (request.width, request.height))
    image, files = ImageOps.fit(picture.image, size), {"image": picture.sha256}
    if request.mask is None:
        return InitImage(image=image, mask=None, files=files)
    mask = _read("mask", user_images.read_mask, request.mask)
    _require_one_shape(mask.size, picture.size)
    with naming_input("mask"):
        gray = _gray(mask.image, image)
    return InitImage(image=image, mask=gray, files={**files, "mask": mask.sha256})


def fitted(picture: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The size to draw a picture in, of those within the frame: as large as can be, with little cropped.

    That is the greatest area × (share of the picture that is kept)⁴. Of a frame that was the answer, the answer is
    that frame: a recipe may name either.

    Raises ImageError if less than half of the picture would be left.
    """

    def kept(size: tuple[int, int]) -> Fraction:
        shapes = Fraction(size[0], size[1]), Fraction(picture[0], picture[1])
        return min(shapes) / max(shapes)

    widths, heights = ([side for side in SIZES if side <= most] for most in frame)
    best = max(product(widths, heights), key=lambda size: (size[0] * size[1] * kept(size) ** 4, size))
    if kept(best) < Fraction(1, 2):
        raise ImageError(
            f"image: of {picture[0]} × {picture[1]} pixels, less than half would be left within "
            f"{frame[0]} × {frame[1]}, whose sides are multiples of 64 from {SIZES[0]}: crop it first"
        )
    return best


def _read(name: str, read: Callable[..., user_images.Picture], path: Path) -> user_images.Picture:
    with naming_input(name):
        return read(path, user_images.UPLOAD, label="the file")  # uploads have no telling names


def _gray(mask: Image.Image, image: Image.Image) -> Image.Image:
    """The mask, RGBA, as grey of the size of `image`, where white is redrawn.

    An opaque mask is its brightness, and faint paint is nearly black. In one with transparent places, the alpha channel
    is what was drawn:

    - visible places are all white: they were painted on a transparent layer, and are redrawn;
    - visible places are all black, or show the image itself: the transparent places were erased, and are redrawn.

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
    """The mask that the alpha channel is; None if it has no transparent or no visible place, or clear corners only."""
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
    if abs(mask[0] * image[1] - mask[1] * image[0]) > max(image):  # a pixel, which scaling may have cost
        raise ImageError(
            f"mask: it has {mask[0]} × {mask[1]} pixels and image {image[0]} × {image[1]}: give both the same shape"
        )
