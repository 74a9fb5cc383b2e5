"""The formats that are read, and oddities of intact files that are no errors."""

import io
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from mimetypes import MimeTypes
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image, PngImagePlugin

from aesthetic import cancellation
from aesthetic.errors import ImageError
from aesthetic.images.formats import format_of, is_image, open_image
from aesthetic.images.user_images import UPLOAD, read_image
from tests.images.test_color import P3
from tests.images.test_user_images import chunk, encoded, read, refusal, zipped
from tests.snapshot import ROOT

SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6  # the camera was held on its side
ENCODED = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MEGABYTES = bytes(2 * 10**6)


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, chroma=444, **options)
    return buffer.getvalue()


def avif(image: Image.Image, **options: object) -> bytes:
    return encoded(image, "AVIF", quality=95, subsampling="4:4:4", **options)


def signpost() -> Image.Image:
    """64 × 32 pixels, red in Display P3 on the left, white on the right."""
    image = Image.new("RGB", (64, 32), "white")
    image.paste((234, 51, 35), (0, 0, 32, 32))
    return image


@pytest.mark.parametrize("write", [heic, avif])
def test_phones_images_are_turned_and_converted_once(tmp_path: Path, write: object) -> None:
    assert callable(write)
    data = write(signpost(), exif=SIDEWAYS.tobytes(), icc_profile=P3)
    [(_, image)] = read(tmp_path, data)
    assert image.size == (32, 64)
    for at, expected in (((16, 10), (255, 0, 0)), ((16, 54), (255, 255, 255))):
        value = image.getpixel(at)
        assert isinstance(value, tuple)
        assert max(abs(own - right) for own, right in zip(value, expected, strict=True)) <= 10
    [(_, plain)] = read(tmp_path, write(signpost()))
    assert plain.size == (64, 32)


def test_all_images_of_a_phone_s_archive_are_read(tmp_path: Path) -> None:
    members = {f"IMG_{i}.HEIC": heic(signpost()) for i in range(3)} | {"screenshot.png": encoded()}
    names = [name for name, _ in read(tmp_path, zipped(members))]
    assert names == ["IMG_0.HEIC", "IMG_1.HEIC", "IMG_2.HEIC", "screenshot.png"]


def test_deep_and_transparent_heic_is_read(tmp_path: Path) -> None:
    [(_, clear)] = read(tmp_path, heic(Image.new("RGBA", (64, 64), (0, 0, 0, 0))))
    assert min(clear.getpixel((32, 32))) > 245  # type: ignore[arg-type]
    deep = pillow_heif.from_bytes("RGB;16", (64, 64), b"\x00\x80" * 3 * 64 * 64)
    buffer = io.BytesIO()
    deep.save(buffer, quality=-1)
    [(_, gray)] = read(tmp_path, buffer.getvalue())
    assert abs(gray.getpixel((32, 32))[0] - 128) <= 2  # type: ignore[index]


def test_a_damaged_heic_is_refused_with_the_reason(tmp_path: Path) -> None:
    data = heic(signpost())
    assert "file can't be read as HEIC: Invalid input" in refusal(tmp_path, data[: len(data) - 100])
    lying = bytearray(heic(Image.effect_noise((512, 512), 50).convert("RGB")))
    at = lying.index(b"ispe") + 8
    lying[at : at + 8] = (64).to_bytes(4, "big") * 2
    assert "file can't be read as HEIC" in refusal(tmp_path, bytes(lying))


def test_the_host_s_pillow_stays_as_it_is(tmp_path: Path) -> None:
    probe = (
        "from pathlib import Path; from PIL import Image; from aesthetic.images import user_images; import sys;"
        "before = Image.MAX_IMAGE_PIXELS; user_images.read_image(Path(sys.argv[1]), user_images.LOCAL);"
        "assert 'pillow_heif' in sys.modules and 'HEIF' not in Image.OPEN and Image.MAX_IMAGE_PIXELS == before"
    )
    (tmp_path / "a").write_bytes(heic(signpost()))
    subprocess.run([sys.executable, "-c", probe, tmp_path / "a"], cwd=ROOT, check=True)


def test_pillow_heif_is_imported_on_first_use() -> None:
    probe = (
        "import sys, aesthetic.cli.main as m, aesthetic.images.user_images;"
        "m._parser(); assert 'pillow_heif' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "suffix", ["cr2", "nef", "dng", "gpr", "psd", "svg", "jxl", "jp2", "jpc", "tga", "CR3", "sgi", "ras", "fits", "pcd"]
)
def test_an_image_of_another_format_is_an_error(tmp_path: Path, suffix: str) -> None:
    message = refusal(tmp_path, zipped({"a.png": encoded(), f"b.{suffix}": b"something else"}))
    assert message.startswith(f"b.{suffix} is not an image of a format that is read (PNG, JPEG, WEBP")


def test_other_files_do_not_count_as_images() -> None:
    others = ("a.txt", "a.mov", "a.mpg", "a.pdf", "a.h5", "a.zip", "a", "png", "a.xmp", "Thumbs.db", "a.png.txt", " ")
    assert not any(map(is_image, others))
    assert all(map(is_image, ("a.png", "A.JPG", "b/a.heic", "..\\a.Tiff", "C:/a.jfif", "a.pbm", "a.svgz")))


@pytest.mark.parametrize("name", ["b.jpg ", "b.JPG.", "b.mpo", "b.insp", "b.jps"])
def test_a_jpeg_with_a_rare_suffix_is_read(tmp_path: Path, name: str) -> None:
    members = {"a.png": encoded(), name: encoded(kind="JPEG")}
    assert [found for found, _ in read(tmp_path, zipped(members))] == ["a.png", name]


def test_every_image_of_python_s_own_list_counts_as_one() -> None:
    suffixes = [suffix for suffix, kind in MimeTypes().types_map[True].items() if kind.startswith("image/")]
    assert len(suffixes) > 15
    assert [suffix for suffix in suffixes if not is_image(f"a{suffix}")] == []


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
    "much XMP": [b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(10**6))] * 80,
    "many": [b"zTXt", b"key\0\0" + zlib.compress(bytes(10**6))] * 80,
}


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
def test_a_png_with_large_texts_is_read(tmp_path: Path, texts: list[bytes], place: bytes) -> None:
    data = encoded(signpost(), icc_profile=P3)
    at = data.index(place) - 4
    chunks = b"".join(chunk(kind, text) for kind, text in zip(texts[::2], texts[1::2], strict=True))
    if texts[0] == b"iCCP":
        data, at = encoded(), encoded().index(place) - 4
    [(_, image)] = read(tmp_path, data[:at] + chunks + data[at:])
    assert image.getpixel((0, 0)) == ((10, 20, 30) if texts[0] == b"iCCP" else (255, 0, 0))


def test_a_png_of_too_many_pieces_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    data = encoded()
    at = data.index(b"IDAT") - 4
    [_] = read(tmp_path, data[:at] + 99_000 * chunk(b"skip", b"") + data[at:] + 99_000 * chunk(b"skip", b""))
    message = refusal(tmp_path, data[:at] + 100_000 * chunk(b"skip", b"") + data[at:])
    assert message == "file can't be read as PNG: it has more than 100,000 chunks"


@pytest.mark.parametrize("write", [heic, avif, *(partial(encoded, kind=kind) for kind in ENCODED)])
def test_opening_ends_once_it_is_canceled(write: Callable[[Image.Image], bytes]) -> None:
    data = write(signpost())
    kind = format_of(data)
    assert kind is not None
    context, wait = copy_context(), cancellation._Wait()
    context.run(cancellation._wait.set, wait)
    with context.run(open_image, kind, data):
        wait.over = True
    with pytest.raises(cancellation.Canceled):
        context.run(open_image, kind, data)


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
def test_an_image_with_damaged_exif_is_read(tmp_path: Path, kind: str) -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x05", b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        [(_, image)] = read(tmp_path, encoded(signpost(), kind, exif=exif))
        assert image.size == (64, 32)


def test_exif_that_can_t_be_written_again_still_turns_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2020"
    data = exif.tobytes().replace(b"\x90\x03\0\x02", b"\x90\x03\0\x05")  # text that is said to be a fraction
    [(_, image)] = read(tmp_path, encoded(signpost(), "JPEG", exif=data))
    assert image.size == (32, 64)


def test_the_error_has_pillow_s_reason(tmp_path: Path) -> None:
    size = (14000, 13000)  # 182 million, which Pillow's own check in its WebP plugin refuses
    header = b"VP8X\x0a\0\0\0\0\0\0\0" + (size[0] - 1).to_bytes(3, "little") + (size[1] - 1).to_bytes(3, "little")
    (tmp_path / "a.webp").write_bytes(b"RIFF\x40\0\0\0WEBP" + header + bytes(40))
    with pytest.raises(ImageError, match=r"a\.webp can't be read as WEBP: Image size \(182000000 pixels\) exceeds"):
        read_image(tmp_path / "a.webp", UPLOAD)
