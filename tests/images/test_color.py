"""Colors of any profile in sRGB, on white."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from aesthetic.images.user_images import UPLOAD, read_image, read_mask
from tests.images import icc
from tests.images.test_user_images import chunk, encoded

SWATCH = Path(__file__).parent.parent / "cases" / "swatch_display_p3.png"  # red of sRGB first, as a phone writes it
with Image.open(SWATCH) as swatch:
    P3 = swatch.info["icc_profile"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS: dict[str, dict[str, object]] = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG": {"quality": 100, "subsampling": 0},
}


def colors(path: Path, image: Image.Image, kind: str = "PNG", **options: object) -> Any:
    """Pixels of the image, written and read."""
    path.write_bytes(encoded(image, kind, **options))
    return np.asarray(read_image(path, UPLOAD).image).astype(int)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_display_p3_is_read_as_srgb(tmp_path: Path, kind: str) -> None:
    red = Image.new("RGB", (16, 16), (234, 51, 35))
    read = colors(tmp_path / "a", red, kind, icc_profile=P3, **LOSSLESS[kind])
    assert abs(read - (255, 0, 0)).max() <= (0 if kind in ("PNG", "TIFF", "WEBP") else 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_large_profiles_are_used_up_to_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    red = Image.new("RGB", (16, 16), (234, 51, 35))
    for size, expected in ((1_200_000, (255, 0, 0)), (9_500_000, (255, 0, 0)), (10_000_001, (234, 51, 35))):
        caplog.clear()
        read = colors(tmp_path / "a", red, kind, icc_profile=P3.ljust(size, b"\0"), **LOSSLESS[kind])
        assert abs(read - expected).max() <= (8 if kind == "JPEG" else 0)
        assert ("Ignored a color profile: it is larger" in caplog.text) == (size > 10**7)


def test_a_damaged_profile_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(Image.new("RGB", (8, 8), (234, 51, 35)))
    at = data.index(b"IDAT") - 4
    (tmp_path / "a").write_bytes(data[:at] + chunk(b"iCCP", b"icc\0\0nonsense") + data[at:])
    assert read_image(tmp_path / "a", UPLOAD).image.getpixel((0, 0)) == (234, 51, 35)
    assert "Ignored a color profile: Error -3 while decompressing data" in caplog.text


def test_a_swatch_of_a_phone_is_right() -> None:
    assert read_image(SWATCH, UPLOAD).image.getpixel((0, 0)) == (255, 0, 0)


def test_transparent_and_palette_images_are_converted_before_they_are_laid_on_white(tmp_path: Path) -> None:
    red = Image.new("RGBA", (16, 16), (234, 51, 35, 255))
    red.paste((234, 51, 35, 0), (0, 0, 8, 16))
    red.paste((234, 51, 35, 128), (8, 0, 12, 16))
    read = colors(tmp_path / "a", red, icc_profile=P3)
    assert [tuple(read[0, x]) for x in (0, 8, 12)] == [(255, 255, 255), (255, 127, 127), (255, 0, 0)]
    palette = Image.new("RGB", (16, 16), (234, 51, 35)).quantize(2)
    assert tuple(colors(tmp_path / "b", palette, icc_profile=P3)[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_has_its_gamma(tmp_path: Path, mode: str) -> None:
    gray = Image.new(mode, (8, 8), {"L": 100, "LA": (100, 255), "I;16": 100 << 8}[mode])  # type: ignore[arg-type]
    linear = (100 / 255) ** 1.0
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert abs(colors(tmp_path / "a", gray, icc_profile=icc.gray(1.0)) - expected).max() <= 1


def test_cmyk_is_converted_by_its_profile(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("TIFF", "JPEG"):
        read = colors(tmp_path / "a", cyan, kind, icc_profile=icc.cmyk(), **LOSSLESS[kind])
        assert np.ptp(read[0, 0]) <= 2  # gray; only black point compensation decides how dark
        assert read.max() < 140
    assert tuple(colors(tmp_path / "a", cyan, "TIFF")[0, 0]) == (0, 255, 255)


@pytest.mark.parametrize(
    "own",
    [SRGB, icc.rgb(icc.SRGB, None), icc.rgb(icc.SRGB, 2.2)[:-8], b"", b"nonsense", icc.cmyk(), icc.gray(1.8)],
    ids=["sRGB", "no curve", "cut short", "empty", "nonsense", "CMYK", "gray"],
)
def test_without_another_usable_profile_no_value_changes(tmp_path: Path, own: bytes) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    assert (colors(tmp_path / "a", noise, icc_profile=own) == np.asarray(noise)).all()
    seen = noise.convert("RGBA")
    seen.putalpha(Image.linear_gradient("L").resize((64, 64)))
    laid = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    assert (colors(tmp_path / "a", seen, icc_profile=own) == np.asarray(laid)).all()


def test_a_profile_for_another_mode_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    colors(tmp_path / "a", Image.new("RGB", (8, 8)), icc_profile=icc.cmyk())
    assert "Ignored a color profile: it is for CMYK, and the image is RGB" in caplog.text


def test_other_primaries_are_converted(tmp_path: Path) -> None:
    green = Image.new("RGB", (8, 8), (144, 255, 60))  # about the green of sRGB in Adobe RGB
    assert abs(colors(tmp_path / "a", green, icc_profile=icc.rgb(icc.ADOBE, 2.2))[0, 0] - (0, 255, 0)).max() <= 2


def test_a_profile_that_asks_for_minutes_and_gigabytes_is_ignored(tmp_path: Path) -> None:
    began = time.process_time()
    colors(tmp_path / "a", Image.new("RGB", (8, 8)), "TIFF", icc_profile=icc.bomb(300))
    assert time.process_time() - began < 1
    ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(icc.bomb(2))), ImageCms.createProfile("sRGB"), "RGB", "RGB"
    )  # littleCMS accepts a smaller one


@pytest.mark.parametrize("cut", range(0, 700, 50))
def test_damaged_profiles_are_harmless(tmp_path: Path, cut: int) -> None:
    for own in (P3[:cut], P3[:cut] + b"\xff" * 8 + P3[cut + 8 :]):
        colors(tmp_path / "a", Image.new("RGB", (8, 8)), "TIFF", icc_profile=own)


def test_a_mask_is_data_and_not_color(tmp_path: Path) -> None:
    (tmp_path / "mask").write_bytes(encoded(Image.new("RGB", (8, 8), (234, 51, 35)), icc_profile=P3))
    assert read_mask(tmp_path / "mask", UPLOAD).image.getpixel((0, 0)) == (234, 51, 35, 255)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_is_read(tmp_path: Path, mode: str) -> None:
    red = Image.new("RGB", (8, 8), (204, 51, 51))
    if mode == "LAB":
        lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = lab.apply(red) if mode == "LAB" else red.convert(mode)
    expected = (97, 97, 97) if mode in ("L", "LA") else (204, 51, 51)
    assert abs(colors(tmp_path / "a", image, "TIFF")[0, 0] - expected).max() <= 3
