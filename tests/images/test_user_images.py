"""Images from users, friendly and hostile."""

import bz2
import gzip
import hashlib
import io
import os
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aesthetic.errors import ImageError
from aesthetic.images import user_images
from aesthetic.images.user_images import LOCAL, UPLOAD, Caps, read_images

SMALL = Caps(images=3, total_bytes=20_000, image_bytes=10_000, image_pixels=10_000)


def encoded(image: Image.Image | None = None, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or Image.new("RGB", (8, 6), (10, 20, 30))).save(buffer, kind, **options)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read(tmp_path: Path, data: bytes, caps: Caps = UPLOAD) -> list[tuple[str, Image.Image]]:
    path = tmp_path / "file"  # uploads have no telling names
    path.write_bytes(data)
    return [(found.name, found.image) for found in read_images(path, caps)]


def refusal(tmp_path: Path, data: bytes, caps: Caps = UPLOAD) -> str:
    with pytest.raises(ImageError) as error:
        read(tmp_path, data, caps)
    return str(error.value)


def pixel(image: Image.Image) -> object:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_reads_one_image_of_every_format(tmp_path: Path, kind: str) -> None:
    [(name, image)] = read(tmp_path, encoded(kind=kind))
    assert (name, image.size, image.mode) == ("file", (8, 6), "RGB")


def test_knows_the_sha256_of_each(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    [found] = read_images(tmp_path / "a.png", UPLOAD)
    assert found.sha256 == hashlib.sha256(encoded()).hexdigest()


ARCHIVES: list[Callable[[dict[str, bytes]], bytes]] = [
    zipped,
    tarred,
    lambda members: gzip.compress(tarred(members)),
    lambda members: bz2.compress(tarred(members)),
]


@pytest.mark.parametrize("archive", ARCHIVES)
def test_reads_archives_and_skips_other_files(tmp_path: Path, archive: Callable[[dict[str, bytes]], bytes]) -> None:
    members = {
        "a/1.png": encoded(),
        "a/2.JPG": encoded(kind="JPEG"),
        "a/notes.txt": b"no image",
        "a/.hidden.png": b"",
        "__MACOSX/a/._1.png": b"",
    }
    assert [name for name, _ in read(tmp_path, archive(members))] == ["a/1.png", "a/2.JPG"]


def test_reads_a_folder_with_folders_in_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.png"):
        (tmp_path / name).write_bytes(encoded())
    (tmp_path / "readme.md").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert [image.name for image in read_images(tmp_path, LOCAL)] == ["b.png", "sub/a.png"]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    [(_, image)] = read(tmp_path, encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = np.asarray(image)[0, 0]
    assert red > 250
    assert max(green, blue) < 5


def test_a_palette_is_converted(tmp_path: Path) -> None:
    [(_, image)] = read(tmp_path, encoded(Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4)))
    assert pixel(image) == (200, 100, 50)


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    gray = Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        [(_, image)] = read(tmp_path, encoded(gray, kind))
        assert pixel(image) == (128, 128, 128)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    [(_, image)] = read(tmp_path, encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))))
    assert pixel(image) == (255, 255, 255)


def test_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    [(_, image)] = read(tmp_path, encoded(Image.new("RGB", (8, 6)), "JPEG", exif=exif))
    assert image.size == (6, 8)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    [(_, image)] = read(tmp_path, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixel(image) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file is empty"),
        (b"just some text", "file is neither an image (PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, HEIC) nor a zip or tar"),
        (encoded(kind="JPEG")[:-40], "file can't be read as JPEG: Truncated File Read"),
        (encoded()[:-30], "file can't be read as PNG"),
        (zipped({"readme.txt": b"text"}), "file holds no image"),
        (tarred({"readme.txt": b"text"}), "file holds no image"),
        (zipped({}), "file holds no image"),
        (zipped({"a.png": encoded(), "b.jpg": encoded(kind="JPEG")[:-40]}), "b.jpg can't be read as JPEG: Truncated"),
        (zipped({"a.png": b"text"}), "a.png is not an image of a format that is read (PNG, JPEG, "),
        (zipped({"a.png": b""}), "a.png is empty"),
        (encoded(Image.new("L", (510, 10))), "file has 510 × 10 pixels; one side may be at most 50 times the other"),
        (encoded(Image.new("RGB", (8, 8)), "TGA"), "file is neither an image"),
        (zipped({f"{i}.txt": b"" for i in range(5001)}), "file holds more than 5000 files"),
        (tarred({f"{i}.txt": b"" for i in range(5001)}), "file holds more than 5000 files"),
        (zipped({"a.png": encoded()}, zipfile.ZIP_LZMA), "a.png in file is not stored or deflated"),
        (zipped({"a.png": encoded()})[:-30], "file is a zip that can't be read: "),
        (gzip.compress(b"no tar" * 200, mtime=0), "file is a tar that can't be read: "),
        (gzip.compress(tarred({"a.png": encoded()}), mtime=0)[:-20], "file is a tar that can't be read: "),
    ],
)
def test_refuses(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(tmp_path, data)


def test_limits_of_uploads() -> None:
    limits = {"images": 500, "total_bytes": 500 * 10**6, "total_pixels": 2 * 10**9, "entries": 5000}
    of_one = {"image_bytes": 100 * 10**6, "image_pixels": 16384 * 12288, "image_memory": 750 * 10**6}
    assert Caps(**limits, **of_one) == UPLOAD


def test_refuses_more_pixels_than_it_may_hold(tmp_path: Path) -> None:
    large = {f"{i}.png": encoded(Image.new("1", (100, 100))) for i in range(3)}
    assert len(read(tmp_path, zipped(large), replace(SMALL, total_pixels=30_000))) == 3
    message = refusal(tmp_path, zipped(large), replace(SMALL, total_pixels=29_999))
    assert message == "file holds more than 29,999 pixels in all"


@pytest.mark.parametrize("skip", [False, True])
def test_the_pixels_of_images_that_can_t_be_read_count(tmp_path: Path, skip: bool) -> None:
    bright = encoded(Image.new("F", (100, 100), 2.0), "TIFF")  # refused only once it is decoded
    (tmp_path / "file").write_bytes(zipped({f"{i}.tif": bright for i in range(3)}))
    with pytest.raises(ImageError, match=r"^file holds more than 29,999 pixels in all$"):
        list(read_images(tmp_path / "file", replace(UPLOAD, total_pixels=29_999), skip_unreadable=skip))


@pytest.mark.parametrize("skip", [False, True])
def test_an_error_names_the_first_images_that_can_t_be_read(tmp_path: Path, skip: bool) -> None:
    (tmp_path / "file").write_bytes(zipped({f"{i:03}.png": b"text" for i in range(140)}))
    with pytest.raises(ImageError) as error:
        list(read_images(tmp_path / "file", UPLOAD, skip_unreadable=skip))
    lines = str(error.value).splitlines()[skip:]
    assert [line.partition(" ")[0] for line in lines] == [*(f"{i:03}.png" for i in range(20)), "and"]
    assert lines[-1] == "and 120 more images can't be read"


def test_refuses_sparse_files_in_a_tar(tmp_path: Path) -> None:
    (tmp_path / "hole.png").touch()
    os.truncate(tmp_path / "hole.png", 10**6)
    subprocess.run(["tar", "-cSf", "hole.tar", "hole.png"], cwd=tmp_path, check=True)
    assert "holds hole.png, which is a sparse file" in refusal(tmp_path, (tmp_path / "hole.tar").read_bytes())


def test_skipped_files_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"a.mov": b"", "b.png": encoded(), "c.txt": b"", ".hidden": b""}
    for data in (zipped(members), tarred(members)):
        caplog.clear()
        read(tmp_path, data)
        assert "Passed over 2 files that are not images, for instance a.mov" in caplog.text


def test_names_are_harmless_in_messages(tmp_path: Path) -> None:
    message = refusal(tmp_path, zipped({"\x1b[31m" + "a" * 5000 + ".png": b"text"}))
    assert message.startswith("\N{REPLACEMENT CHARACTER}[31maaa")
    assert len(message) < 400


def test_refuses_an_encrypted_zip(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.png": encoded()}))
    for start in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1
    assert "a.png in file is encrypted" in refusal(tmp_path, bytes(data))


def headed(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in data)


def test_refuses_900_million_pixels_without_unpacking_them(tmp_path: Path) -> None:
    message = refusal(tmp_path, headed(30_000, 30_000))
    assert message == "file has 30000 × 30000 pixels; at most 201,326,592 are read of one image"
    assert "201,326,592" in refusal(tmp_path, headed(16384, 12289))


def test_200_million_pixels_are_read(tmp_path: Path) -> None:
    photograph = Image.new("L", (12288, 16384), 90)
    photograph.paste(200, (0, 0, 6144, 16384))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded(photograph, "JPEG", exif=exif))
    [found] = read_images(tmp_path / "a.jpg", UPLOAD)
    assert (found.size, found.image.size) == ((16384, 12288), (4096, 3072))
    assert [found.image.getpixel((2048, y)) for y in (100, 3000)] == [(200, 200, 200), (90, 90, 90)]


def test_the_pixels_of_the_file_count_and_not_those_that_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_images, "LARGE", 100)
    monkeypatch.setattr(user_images, "ENOUGH", 8)
    data = zipped({"a.jpg": encoded(Image.new("L", (64, 64)), "JPEG")})
    assert read(tmp_path, data)[0][1].size == (8, 8)
    assert "holds more than 4,095 pixels in all" in refusal(tmp_path, data, replace(UPLOAD, total_pixels=4095))


def test_a_fraction_of_a_jpeg_looks_like_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    data = encoded(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC), "JPEG", quality=95)
    [(_, whole)] = read(tmp_path, data)
    monkeypatch.setattr(user_images, "LARGE", 100)
    monkeypatch.setattr(user_images, "ENOUGH", 120)
    [(_, fraction)] = read(tmp_path, data)
    assert fraction.size == (160, 120)
    small = [np.asarray(image.resize((40, 30), Image.Resampling.BICUBIC)).astype(int) for image in (whole, fraction)]
    assert abs(small[0] - small[1]).mean() < 1


def test_names_all_images_that_can_t_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"a.png": encoded(), "b.png": b"text", "c.png": encoded(), "d.cr2": b"raw", "e.jpg": b"\xff\xd8\xff"}
    for data in (zipped(members), tarred(members)):
        message = refusal(tmp_path, data)
        assert [line.partition(" ")[0] for line in message.splitlines()] == ["b.png", "d.cr2", "e.jpg"]
        caplog.clear()
        found = read_images(tmp_path / "file", UPLOAD, skip_unreadable=True)
        assert [image.name for image in found] == ["a.png", "c.png"]
        assert f"Left out 3 images that can't be read:\n{message}" in caplog.text


def test_damage_to_one_file_in_a_zip_does_not_affect_others(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.png": encoded(), "b.png": encoded(), "c.png": bytes(20_000)}, zipfile.ZIP_STORED))
    data[data.index(b"IDAT")] ^= 1
    (tmp_path / "file").write_bytes(data)
    caps = replace(UPLOAD, image_bytes=10_000)
    assert [image.name for image in read_images(tmp_path / "file", caps, skip_unreadable=True)] == ["b.png"]
    assert refusal(tmp_path, bytes(data), caps).splitlines() == [
        "a.png in file can't be read: Bad CRC-32 for file 'a.png'",
        "c.png is larger than 0 MB",
    ]
    assert refusal(tmp_path, encoded() + bytes(20_000), caps) == "file is larger than 0 MB"


def test_damage_to_an_archive_is_never_skipped(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(tarred({"a.png": encoded(), "b.png": encoded()})[:1600])
    with pytest.raises(ImageError, match="file is a tar that can't be read"):
        list(read_images(tmp_path / "file", UPLOAD, skip_unreadable=True))
    (tmp_path / "file").write_bytes(zipped({"a.png": b"text"}))
    with pytest.raises(ImageError, match=r"file holds no image that can be read:\na.png is not an image"):
        list(read_images(tmp_path / "file", UPLOAD, skip_unreadable=True))


def test_refuses_bombs(tmp_path: Path) -> None:
    zeros, caps = b"\0" * 60 * 10**6, replace(UPLOAD, total_bytes=50 * 10**6, image_bytes=10**7)
    for data in (zipped({"a.png": zeros}), gzip.compress(tarred({"a.png": zeros}), 1)):
        assert len(data) < 5 * 10**5
        assert refusal(tmp_path, data, caps) in ("file unpacks to more than 50 MB", "a.png is larger than 10 MB")


def test_refuses_a_tar_whose_header_asks_for_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    info.size = 10**11
    data = gzip.compress(info.tobuf() + b"\0" * 10**6)
    message = refusal(tmp_path, data, SMALL)
    assert "tar that can't be read" in message or "more than" in message


def test_refuses_too_many_and_too_much(tmp_path: Path) -> None:
    four = {f"{i}.png": encoded() for i in range(4)}
    assert "file holds more than 3 images" in refusal(tmp_path, zipped(four), SMALL)
    zeros = {f"{i}.txt": bytes(9000) for i in range(3)}
    assert "file holds no image" in refusal(tmp_path, zipped(zeros), SMALL)  # of a zip, only images are unpacked
    images = {name.replace("txt", "png"): data for name, data in zeros.items()}
    assert "file unpacks to more than" in refusal(tmp_path, zipped(images), SMALL)
    assert "file unpacks to more than" in refusal(tmp_path, gzip.compress(tarred(zeros)), SMALL)


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert refusal(tmp_path, buffer.getvalue()) == "link.png in file is a link, not a file"


def test_says_so_if_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no file"):
        list(read_images(tmp_path / "nothing", LOCAL))


LIKES = {f"{i}.png": encoded(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(5)}


@pytest.mark.parametrize("archive", ARCHIVES[1:])
@pytest.mark.parametrize("skip", [False, True])
def test_damage_to_a_tar_never_loses_images_silently(
    tmp_path: Path, archive: Callable[[dict[str, bytes]], bytes], skip: bool, caplog: pytest.LogCaptureFixture
) -> None:
    whole = archive(LIKES)
    end = 5 * 1024 if archive is tarred else len(whole)  # what follows are zeros
    for at in range(20, end, max(1, end // 64)):
        for damaged in (whole[:at], whole[:at] + b"\xff" * 8 + whole[at + 8 :]):
            (tmp_path / "file").write_bytes(damaged)
            caplog.clear()
            with suppress(ImageError):
                found = list(read_images(tmp_path / "file", UPLOAD, skip_unreadable=skip))
                said = sum(record.args[0] for record in caplog.records)  # type: ignore[index, misc]
                assert len(found) + said == len(LIKES)


WHOLE = [encoded(), encoded(kind="JPEG"), zipped({"a.png": encoded()}), gzip.compress(tarred({"a.png": encoded()}))]


@given(whole=st.sampled_from(WHOLE), at=st.integers(0, 2000), new=st.binary(max_size=8))
def test_damage_of_any_kind_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, at: int, new: bytes
) -> None:
    at %= len(whole)
    with suppress(ImageError):
        read(tmp_path_factory.mktemp("damaged"), whole[:at] + new + whole[at + len(new) :], SMALL)
