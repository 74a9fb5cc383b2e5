"""Which formats are read, and what in an intact file is no reason to refuse it."""

import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from aesthetic.formats import is_image
from tests.test_color import P3
from tests.test_images import chunk, encoded, read, refusal, zipped

SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6  # the camera was held on its side
MEGABYTES = bytes(2 * 10**6)


def signpost() -> Image.Image:
    """64 × 32 pixels, red in Display P3 on the left, white on the right."""
    image = Image.new("RGB", (64, 32), "white")
    image.paste((234, 51, 35), (0, 0, 32, 32))
    return image


@pytest.mark.parametrize("suffix", ["cr2", "nef", "arw", "dng", "psd", "svg", "jxl", "jp2", "tga", "ico", "CR3"])
def test_an_image_of_another_format_is_no_other_file(tmp_path: Path, suffix: str) -> None:
    message = refusal(tmp_path, zipped({"a.png": encoded(), f"b.{suffix}": b"something else"}))
    assert message.startswith(f"b.{suffix} is not an image of a format that is read (PNG, JPEG, WEBP")


def test_other_files_are_no_images() -> None:
    assert not any(map(is_image, ("a.txt", "a.mov", "a.zip", "a", "png", "a.xmp", "a.json", "Thumbs.db")))
    assert all(map(is_image, ("a.png", "A.JPG", "..\\a.Tiff", "C:/a.jfif", "a.pbm", "a.svgz")))


def test_raw_files_are_not_read_as_their_thumbnails(tmp_path: Path) -> None:
    canon = bytearray(encoded(kind="TIFF"))
    canon[8:8] = b"CR\x02\x00"
    assert "file is neither an image" in refusal(tmp_path, bytes(canon))


TEXTS: dict[str, list[bytes]] = {
    "one that unpacks to 2 MB, in iTXt": [b"iTXt", b"key\0\1\0\0\0" + zlib.compress(MEGABYTES)],
    "one that unpacks to 2 MB, in zTXt": [b"zTXt", b"key\0\0" + zlib.compress(MEGABYTES)],
    "XMP": [b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(MEGABYTES)],
    "EXIF as text": [b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(MEGABYTES)],
    "a color profile": [b"iCCP", b"icc\0\0" + zlib.compress(MEGABYTES)],
    "many": [b"zTXt", b"key\0\0" + zlib.compress(bytes(10**6))] * 80,
}


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
def test_texts_are_no_reason_to_refuse_a_png(tmp_path: Path, texts: list[bytes], place: bytes) -> None:
    data = encoded(signpost(), icc_profile=P3)
    at = data.index(place) - 4
    chunks = b"".join(chunk(kind, text) for kind, text in zip(texts[::2], texts[1::2], strict=True))
    if texts[0] == b"iCCP":
        data, at = encoded(), encoded().index(place) - 4
    [(_, image)] = read(tmp_path, data[:at] + chunks + data[at:])
    assert image.getpixel((0, 0)) == ((10, 20, 30) if texts[0] == b"iCCP" else (255, 0, 0))


def test_the_orientation_of_a_png_is_found_wherever_it_is(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    raw = SIDEWAYS.tobytes()
    old = PngImagePlugin.PngInfo()
    old.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n", zip=True)
    for options in ({"pnginfo": texts}, {"pnginfo": old}, {"exif": SIDEWAYS}):
        [(_, image)] = read(tmp_path, encoded(signpost(), **options))
        assert image.size == (32, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_no_reason_to_refuse_an_image(tmp_path: Path, kind: str) -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x05", b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        [(_, image)] = read(tmp_path, encoded(signpost(), kind, exif=exif))
        assert image.size == (64, 32)


def test_exif_that_can_t_be_written_again_still_says_what_is_up(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2020"
    data = exif.tobytes().replace(b"\x90\x03\0\x02", b"\x90\x03\0\x05")  # text that is said to be a fraction
    [(_, image)] = read(tmp_path, encoded(signpost(), "JPEG", exif=data))
    assert image.size == (32, 64)
