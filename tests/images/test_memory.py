"""How much memory an image takes: no file of a few bytes may demand gigabytes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from aesthetic.images import formats
from aesthetic.images.formats import open_image
from aesthetic.images.user_images import UPLOAD, read_image
from tests import memory
from tests.fuzz.images import flat_png, flat_webp, heic
from tests.images import icc
from tests.images.test_user_images import encoded, headed, refusal

SIDE = 3000
SLACK = 15 * 10**6  # bytes: libraries that are loaded, and the file
EXIF = Image.Exif()
EXIF[0x0112] = 6
PROFILE = icc.rgb(icc.ADOBE, 2.2)


def flat(mode: str, kind: str, **options: object) -> Callable[[], bytes]:
    return lambda: encoded(Image.new(mode, (SIDE, SIDE)), kind, **options)


WORST: dict[str, tuple[str, Callable[[], bytes]]] = {  # by mode, with the format
    "RGBA": ("PNG", flat("RGBA", "PNG", exif=EXIF, icc_profile=PROFILE, compress_level=1)),
    "LA": ("PNG", lambda: flat_png(SIDE, SIDE, 4, 16)),
    "34 bytes": ("WEBP", lambda: flat_webp(SIDE, SIDE)),
    "lossy": ("WEBP", flat("RGBA", "WEBP", exif=EXIF, icc_profile=PROFILE, method=0, quality=1)),
    "palette": ("GIF", flat("P", "GIF", transparency=0)),
    "bits": ("BMP", flat("1", "BMP")),
    "transparent": ("TIFF", flat("RGBA", "TIFF", compression="tiff_deflate", exif=EXIF, icc_profile=PROFILE)),
    "floats": ("TIFF", flat("F", "TIFF", compression="tiff_deflate")),
    "whole": ("AVIF", flat("RGBA", "AVIF", speed=10, exif=EXIF, icc_profile=PROFILE, subsampling="4:4:4")),
    "of a phone": ("HEIC", lambda: heic(Image.new("RGBA", (SIDE, SIDE)), exif=EXIF.tobytes(), icc_profile=PROFILE)),
    "progressive": ("JPEG", flat("CMYK", "JPEG", progressive=True)),
}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
@pytest.mark.parametrize("mode", WORST)
def test_no_image_takes_more_memory_than_is_reckoned(tmp_path: Path, mode: str) -> None:
    kind, write = WORST[mode]
    (tmp_path / "a").write_bytes(write())
    reckoned = formats.PROGRESSIVE if mode == "progressive" else formats.BYTES[kind]
    imports = "from aesthetic.images.user_images import UPLOAD, read_image"
    taken = memory.taken(tmp_path / "a", imports, "read_image(path, UPLOAD)")
    assert taken < reckoned * SIDE**2 + SLACK


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (flat_webp(7000, 7000), "file is a WEBP of 7000 × 7000 pixels, and at most 34 million are read of such a file"),
        (headed(8000, 8000), "file is a PNG of 8000 × 8000 pixels, and at most 54 million are read of such a file"),
    ],
)
def test_an_upload_of_more_memory_is_refused_before_it_is_decoded(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(tmp_path, data)


def test_the_camera_s_jpegs_are_within_the_limit() -> None:
    assert formats.BYTES["JPEG"] * UPLOAD.image_pixels + 2 * UPLOAD.image_bytes < UPLOAD.image_memory + 10**8
    assert formats.BYTES["HEIC"] * 8064 * 6048 + 2 * 15 * 10**6 < UPLOAD.image_memory


def test_a_jpeg_in_several_scans_counts_as_progressive() -> None:
    noise = Image.effect_noise((64, 48), 50)
    for mode in ("L", "RGB", "CMYK"):
        data = encoded(noise.convert(mode), "JPEG")
        assert "progressive" not in open_image("JPEG", data).info
        assert "progressive" in open_image("JPEG", encoded(noise.convert(mode), "JPEG", progressive=True)).info
    at = data.index(formats.SCAN)
    first = data[:at] + formats.SCAN + b"\0\x08\1\1\0\0\x3f\0" + data[at:]  # of one layer, as a baseline JPEG may have
    assert "progressive" in open_image("JPEG", first).info


def test_a_jpeg_of_a_thousand_scans_is_refused(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    at = data.rfind(formats.SCAN)
    assert read_image(written(tmp_path, data[:at] + 100 * data[at:-2] + data[-2:]), UPLOAD).size == (2000, 2000)
    message = refusal(tmp_path, data[:at] + 1000 * data[at:-2] + data[-2:])
    assert message == "file can't be read as JPEG: it has 1009 scans of 2000 × 2000 pixels; save it anew"


def written(folder: Path, data: bytes) -> Path:
    (folder / "a").write_bytes(data)
    return folder / "a"
