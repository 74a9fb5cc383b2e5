"""Deep pixels in 8 bits: TIFFs as tifffile writes them, PNGs byte by byte."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from aesthetic.errors import ImageError
from aesthetic.images.user_images import UPLOAD, read_image
from tests.images.test_user_images import chunk

RAMP = np.arange(4096).reshape(64, 64)
RAMP12 = Path(__file__).parent.parent / "cases" / "ramp12.tif"  # 64 levels from 0 to 4095, in rows of 12 bits each


def tiff(pixels: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def read(folder: Path, data: bytes) -> Any:
    (folder / "a.tif").write_bytes(data)
    return np.asarray(read_image(folder / "a.tif", UPLOAD).image).astype(int)


def refusal(folder: Path, data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        read(folder, data)
    return str(error.value)


def test_12_bits_are_scaled() -> None:
    levels = np.asarray(read_image(RAMP12, UPLOAD).image)[..., 0]
    assert (levels == np.linspace(0, 4095, 64).astype(int) >> 4).all()


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_gray_is_scaled_from_its_range(
    tmp_path: Path, kind: str, compression: str | None, byteorder: str, photometric: str
) -> None:
    pixels = (RAMP / 4095 * {"u1": 255, "u2": 65535, "f4": 1}[kind]).astype(kind)
    data = tiff(pixels, photometric=photometric, byteorder=byteorder, compression=compression)
    if byteorder == ">" and ((kind, photometric) == ("u2", "miniswhite") or (kind, compression) == ("f4", "deflate")):
        assert "save it with 8 bits a sample, or as PNG" in refusal(tmp_path, data)  # Pillow can't, or gets it wrong
        return
    expected = RAMP / 4095 * 255
    assert abs(read(tmp_path, data)[..., 0] - (255 - expected if photometric == "miniswhite" else expected)).max() <= 1


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_channels_are_right_or_refused(tmp_path: Path, kind: str, planes: str, compression: str | None) -> None:
    pixels = np.stack([RAMP, RAMP[::-1], RAMP.T], -1) / 4095 * {"u1": 255, "u2": 65535}[kind]
    written = pixels if planes == "contig" else np.moveaxis(pixels, -1, 0)
    data = tiff(written.astype(kind), photometric="rgb", planarconfig=planes, compression=compression)
    if (kind, planes, compression) == ("u2", "separate", None):
        assert "Pillow misreads 16-bit planes without compression" in refusal(tmp_path, data)
    else:
        assert abs(read(tmp_path, data) - pixels / (257 if kind == "u2" else 1)).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RAMP.astype("i1"), "8-bit signed integers have no known range"),
        (RAMP.astype("i2"), "16-bit signed integers have no known range"),
        (RAMP.astype("i4"), "32-bit signed integers have no known range"),
        (RAMP.astype("u4"), "32-bit unsigned integers have no known range"),
        (RAMP.astype("f4"), "its floats go from 0 to 4095; those from 0 to 1 are read"),
        (RAMP.astype("f4") / 4095 - 0.5, "its floats go from -0.5 to 0.5"),
        (RAMP.astype("f4") / 4095 * 1.01, "its floats go from 0 to 1.01"),
        (np.full((8, 8), np.nan, "f4"), "its floats go from nan to nan"),
        (RAMP.astype("f8"), "unknown pixel mode; save it with 8 bits a sample, or as PNG"),
    ],
)
def test_samples_without_a_known_range_are_refused(tmp_path: Path, pixels: Any, message: str) -> None:
    assert f"a.tif can't be read as TIFF: {message}" in refusal(tmp_path, tiff(pixels, photometric="minisblack"))


def test_the_thumbnail_of_a_raw_file_is_not_the_image(tmp_path: Path) -> None:
    thumbnail = tiff(np.zeros((8, 8, 3), np.uint8), photometric="rgb", subfiletype=1)
    assert "its first image is a thumbnail, as in the raw files of cameras" in refusal(tmp_path, thumbnail)


def test_premultiplied_gray_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 2), np.uint8)
    data = tiff(pixels, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"])
    assert (read(tmp_path, data) == 255).all()


@pytest.mark.parametrize(("depth", "bit_steps"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 256)])
def test_the_transparent_gray_of_a_png_is_laid_on_white(tmp_path: Path, depth: int, bit_steps: int) -> None:
    width = 16
    levels = (np.arange(width) * bit_steps) % 2**depth
    bits = (levels[:, None] >> np.arange(depth)[::-1]) & 1
    data = png(width, depth, 0, np.packbits(bits.astype(np.uint8)).tobytes(), struct.pack(">H", bit_steps))
    expected = np.where(levels == bit_steps, 255, levels * 255 // (2**depth - 1) if depth <= 8 else levels >> 8)
    assert (read(tmp_path, data)[0, :, 0] == expected).all()


def test_the_transparent_color_of_a_deep_png_is_laid_on_white(tmp_path: Path) -> None:
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x2234, 0x5678, 0x9ABC)
    read_back = read(tmp_path, png(2, 16, 2, row, row[:6]))
    assert read_back[0].tolist() == [[255, 255, 255], [0x22, 0x56, 0x9A]]


def png(width: int, depth: int, color: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row, with a transparent color."""
    header = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data)
        for kind, data in (
            (b"IHDR", header),
            (b"tRNS", transparent),
            (b"IDAT", zlib.compress(b"\0" + row)),
            (b"IEND", b""),
        )
    )
