"""The picture that a request starts from, and its mask, at the size that is drawn. Neither torch nor a model here."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

from PIL import Image, ImageOps

from . import images
from .errors import PictureError, blaming
from .request import SIZES, Request

__all__ = ["Canvas", "fitted", "read"]

HALF = 128  # of 256 levels of grey: from here on a mask is white


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What is drawn over.

    image: RGB, in the size that is drawn.
    mask:  grey, of that size: white is redrawn, black is kept; None redraws everything.
    files: the sha256 of each file, by the name of its input.
    """

    image: Image.Image
    mask: Image.Image | None
    files: dict[str, str]


def read(request: Request) -> Canvas | None:
    """The canvas of a request; None if it has no image. Raises PictureError."""
    if request.image is None:
        return None
    picture = _read("image", request.image)
    size = fitted(picture.image.size, (request.width, request.height))
    image, files = ImageOps.fit(picture.image, size), {"image": picture.sha256}
    if request.mask is None:
        return Canvas(image=image, mask=None, files=files)
    mask = _read("mask", request.mask)
    _require_one_shape(mask.image.size, picture.image.size)
    grey = ImageOps.fit(mask.image.convert("L"), size)
    if grey.getextrema()[1] < HALF:  # type: ignore[operator]
        raise PictureError("mask: nothing in it is white, and only what is white is redrawn")
    return Canvas(image=image, mask=grey, files={**files, "mask": mask.sha256})


def fitted(picture: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The size to draw a picture in, of those within the frame: as large as can be, with little cropped.

    That is the greatest area × (share of the picture that is kept)⁴. Of a frame that was the answer, the answer is
    that frame: a recipe may name either.

    Raises PictureError if less than half of the picture would be left.
    """

    def kept(size: tuple[int, int]) -> Fraction:
        shapes = Fraction(size[0], size[1]), Fraction(picture[0], picture[1])
        return min(shapes) / max(shapes)

    widths, heights = ([side for side in SIZES if side <= most] for most in frame)
    best = max(product(widths, heights), key=lambda size: (size[0] * size[1] * kept(size) ** 4, size))
    if kept(best) < Fraction(1, 2):
        raise PictureError(
            f"image: of {picture[0]} × {picture[1]} pixels, less than half would be left within "
            f"{frame[0]} × {frame[1]}, whose sides are multiples of 64 from {SIZES[0]}: crop it first"
        )
    return best


def _read(name: str, path: Path) -> images.Picture:
    with blaming(name):
        return images.read_picture(path, images.UPLOAD, label="the file")  # uploads have no telling names


def _require_one_shape(mask: tuple[int, int], image: tuple[int, int]) -> None:
    if abs(mask[0] * image[1] - mask[1] * image[0]) > max(image):  # a pixel, which scaling may have cost
        raise PictureError(
            f"mask: it has {mask[0]} × {mask[1]} pixels and image {image[0]} × {image[1]}: give both the same shape"
        )
