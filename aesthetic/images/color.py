"""Images of any color space and transparency as opaque sRGB."""

import io
import logging

import numpy as np
from PIL import Image, ImageChops, ImageCms

__all__ = ["on_white", "with_alpha"]

log = logging.getLogger(__name__)

SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # color space of a profile that fits a mode
MAX_PROFILE = 10 * 10**6  # bytes; profiles of printers have up to 9 MB
LATTICE = Image.fromarray(np.mgrid[0:256:17, 0:256:17, 0:256:17].reshape(3, 64, 64).transpose(1, 2, 0).astype(np.uint8))


def on_white(image: Image.Image) -> Image.Image:
    """The image in sRGB, mode RGB, on white where it is transparent.

    Colors are converted if the image has a color profile that fits its mode; without one they are assumed to be sRGB. A
    profile that can't be used is ignored, with a warning. An sRGB image keeps its values.
    """
    rgb, profile = _opaque(image), image.info.get("icc_profile")
    if profile and (transform := _transform(profile, rgb.mode)):
        rgb = transform.apply(rgb)
    if rgb.mode != "RGB":  # convert would copy
        rgb = rgb.convert("RGB")
    if not image.has_transparency_data:
        return rgb
    alpha = with_alpha(image).getchannel("A")  # before there is another image in memory
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def with_alpha(image: Image.Image) -> Image.Image:
    """The image in mode RGBA, without color conversion: itself, if it has that mode."""
    if image.mode == "RGBA":  # convert would copy
        return image
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _opaque(image: Image.Image) -> Image.Image:
    """The image without alpha, in a mode that color profiles exist for: L, RGB or CMYK."""
    if image.mode in SPACES:
        return image
    if image.mode == "La":  # Pillow only converts premultiplied gray to LA
        image = image.convert("LA")
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; None if it changes no level of 255 by more than 1, or the profile can't be used."""
    try:
        transform = _to_srgb(profile, mode)
        probe = LATTICE.convert(mode)
        change = ImageChops.difference(transform.apply(probe), probe.convert("RGB"))
    except Exception as error:  # damaged profiles make littleCMS raise various errors
        log.warning("Ignored a color profile: %s", error)
        return None
    return transform if np.asarray(change).max() > 1 else None


def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    # Multi-process elements may share data: a file of 64 kB can ask for minutes and gigabytes.
    if len(profile) > MAX_PROFILE or b"mpet" in profile:
        raise ValueError("it is larger or more complex than the profiles of images")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space != SPACES[mode]:
        raise ValueError(f"it is for {source.profile.xcolor_space.strip()}, and the image is {mode}")
    # The defaults of image editors: colors unchanged, and the darkest ink as black.
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
