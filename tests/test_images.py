"""Pictures from users, friendly and hostile."""

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

from aesthetic.errors import PictureError
from aesthetic.images import LOCAL, UPLOAD, Caps, read_pictures

SMALL = Caps(pictures=3, total_bytes=20_000, total_pixels=None, picture_bytes=10_000, picture_pixels=10_000)


def encoded(image: Image.Image | None = None, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or Image.new("RGB", (8, 6), (10, 20, 30))).save(buffer, kind, **options)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(tmp_path: Path, data: bytes, caps: Caps = UPLOAD) -> list[tuple[str, Image.Image]]:
    path = tmp_path / "file"  # uploads have no telling names
    path.write_bytes(data)
    return [(picture.name, picture.image) for picture in read_pictures(path, caps)]


def refusal(tmp_path: Path, data: bytes, caps: Caps = UPLOAD) -> str:
    with pytest.raises(PictureError) as error:
        read(tmp_path, data, caps)
    return str(error.value)


def pixel(image: Image.Image) -> object:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_reads_one_picture_of_every_format(tmp_path: Path, kind: str) -> None:
    [(name, image)] = read(tmp_path, encoded(kind=kind))
    assert (name, image.size, image.mode) == ("file", (8, 6), "RGB")


def test_knows_the_sha256_of_each(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    [picture] = read_pictures(tmp_path / "a.png", UPLOAD)
    assert picture.sha256 == hashlib.sha256(encoded()).hexdigest()


ARCHIVES: list[Callable[[dict[str, bytes]], bytes]] = [
    zipped,
    tarred,
    lambda members: gzip.compress(tarred(members)),
    lambda members: bz2.compress(tarred(members)),
]


@pytest.mark.parametrize("archive", ARCHIVES)
def test_reads_archives_and_passes_over_the_rest(tmp_path: Path, archive: Callable[[dict[str, bytes]], bytes]) -> None:
    members = {
        "a/1.png": encoded(),
        "a/2.JPG": encoded(kind="JPEG"),
        "a/notes.txt": b"no picture",
        "a/.hidden.png": b"",
        "__MACOSX/a/._1.png": b"",
    }
    assert [name for name, _ in read(tmp_path, archive(members))] == ["a/1.png", "a/2.JPG"]


def test_reads_a_folder_with_folders_in_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.png"):
        (tmp_path / name).write_bytes(encoded())
    (tmp_path / "readme.md").write_text("no picture")
    assert [picture.name for picture in read_pictures(tmp_path, LOCAL)] == ["b.png", "sub/a.png"]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    [(_, image)] = read(tmp_path, encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = np.asarray(image)[0, 0]
    assert red > 250
    assert max(green, blue) < 5


def test_a_palette_is_converted(tmp_path: Path) -> None:
    [(_, image)] = read(tmp_path, encoded(Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4)))
    assert pixel(image) == (200, 100, 50)


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        [(_, image)] = read(tmp_path, encoded(grey, kind))
        assert pixel(image) == (128, 128, 128)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    [(_, image)] = read(tmp_path, encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))))
    assert pixel(image) == (255, 255, 255)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    [(_, image)] = read(tmp_path, encoded(Image.new("RGB", (8, 6)), "JPEG", exif=exif))
    assert image.size == (6, 8)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    [(_, image)] = read(tmp_path, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixel(image) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file is empty"),
        (b"just some text", "file is neither a picture (PNG, JPEG, WEBP, GIF, BMP, TIFF) nor a zip or tar"),
        (encoded(kind="JPEG")[:-40], "file is a damaged picture"),
        (encoded()[:-30], "file is a damaged picture"),
        (zipped({"readme.txt": b"text"}), "file holds no picture"),
        (tarred({"readme.txt": b"text"}), "file holds no picture"),
        (zipped({}), "file holds no picture"),
        (zipped({"a.png": encoded(), "b.jpg": encoded(kind="JPEG")[:-40]}), "b.jpg is a damaged picture"),
        (zipped({"a.png": b"text"}), "a.png is neither a picture"),
        (zipped({"../../evil.png": encoded()}), "holds ../../evil.png, which points outside of the archive"),
        (zipped({"..\\evil.png": encoded()}), "which points outside of the archive"),
        (zipped({"/etc/evil.png": encoded()}), "holds /etc/evil.png, which points outside of the archive"),
        (zipped({"C:\\evil.png": encoded()}), "which points outside of the archive"),
        (tarred({"../evil.png": encoded()}), "holds ../evil.png, which points outside of the archive"),
        (tarred({"../x.txt": b""}), "which points outside of the archive"),
        (encoded(Image.new("L", (510, 10))), "file has 510 × 10 pixels; one side may be at most 50 times the other"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "32 bits a pixel have no known range"),
        (encoded(Image.new("I", (8, 8)), "TIFF"), "32 bits a pixel have no known range"),
        (encoded(Image.new("RGB", (8, 8)), "TGA"), "file is neither a picture"),
        (zipped({f"{i}.txt": b"" for i in range(5001)}), "file holds more than 5000 files"),
        (tarred({f"{i}.txt": b"" for i in range(5001)}), "file holds more than 5000 files"),
        (zipped({"a.png": encoded()}, zipfile.ZIP_LZMA), "a.png in file is not stored or deflated"),
        (zipped({"a.png": encoded()})[:-30], "file is a damaged zip"),
        (gzip.compress(b"no tar" * 200, mtime=0), "file is a damaged tar"),
        (gzip.compress(tarred({"a.png": encoded()}), mtime=0)[:-20], "file is a damaged tar"),
    ],
)
def test_refuses(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(tmp_path, data)


def test_limits_of_uploads() -> None:
    assert (
        Caps(
            pictures=500,
            total_bytes=500 * 10**6,
            total_pixels=2 * 10**9,
            entries=5000,
            picture_bytes=100 * 10**6,
            picture_pixels=100 * 10**6,
        )
        == UPLOAD
    )


def test_refuses_more_pixels_than_it_may_hold(tmp_path: Path) -> None:
    large = {f"{i}.png": encoded(Image.new("1", (100, 100))) for i in range(3)}
    assert len(read(tmp_path, zipped(large), replace(SMALL, total_pixels=30_000))) == 3
    message = refusal(tmp_path, zipped(large), replace(SMALL, total_pixels=29_999))
    assert message == "file holds more than 29,999 pixels in all"


def test_refuses_sparse_files_in_a_tar(tmp_path: Path) -> None:
    (tmp_path / "hole.png").touch()
    os.truncate(tmp_path / "hole.png", 10**6)
    subprocess.run(["tar", "-cSf", "hole.tar", "hole.png"], cwd=tmp_path, check=True)
    assert "holds hole.png, which is a sparse file" in refusal(tmp_path, (tmp_path / "hole.tar").read_bytes())


def test_says_what_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"a.heic": b"", "b.png": encoded(), "c.txt": b"", ".hidden": b""}
    for data in (zipped(members), tarred(members)):
        caplog.clear()
        read(tmp_path, data)
        assert "Passed over 2 files that are no pictures, for instance a.heic" in caplog.text


def test_names_are_harmless_in_messages(tmp_path: Path) -> None:
    message = refusal(tmp_path, zipped({"\x1b[31m" + "a" * 5000 + ".png": b"text"}))
    assert message.startswith("\N{REPLACEMENT CHARACTER}[31maaa")
    assert len(message) < 400


def test_refuses_an_encrypted_zip(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.png": encoded()}))
    for start in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1
    assert "a.png in file is encrypted" in refusal(tmp_path, bytes(data))


def test_refuses_900_million_pixels_without_unpacking_them(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    assert refusal(tmp_path, bomb) == "file has more than 100 million pixels"
    assert refusal(tmp_path, encoded(Image.new("L", (11_000, 10_000)))) == "file has more than 100 million pixels"


def test_refuses_bombs(tmp_path: Path) -> None:
    zeros = b"\0" * 600 * 10**6
    for data in (zipped({"a.png": zeros}), gzip.compress(tarred({"a.png": zeros}), 1)):
        assert len(data) < 5 * 10**6
        message = refusal(tmp_path, data)
        assert message in ("file unpacks to more than 500 MB", "a.png is larger than 100 MB")


def test_refuses_a_tar_whose_header_asks_for_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    info.size = 10**11
    data = gzip.compress(info.tobuf() + b"\0" * 10**6)
    assert "damaged tar" in refusal(tmp_path, data, SMALL) or "more than" in refusal(tmp_path, data, SMALL)


def test_refuses_too_many_and_too_much(tmp_path: Path) -> None:
    four = {f"{i}.png": encoded() for i in range(4)}
    assert "file holds more than 3 pictures" in refusal(tmp_path, zipped(four), SMALL)
    noise = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)))
    assert len(noise) < SMALL.picture_bytes
    assert "unpacks to more than" in refusal(tmp_path, zipped({f"{i}.png": noise for i in range(3)}), SMALL)
    assert "unpacks to more than" in refusal(tmp_path, tarred({f"{i}.png": noise for i in range(3)}), SMALL)


def test_links_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "holds no picture" in refusal(tmp_path, buffer.getvalue())


def test_says_so_if_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="there is no file"):
        list(read_pictures(tmp_path / "nothing", LOCAL))


WHOLE = [encoded(), encoded(kind="JPEG"), zipped({"a.png": encoded()}), gzip.compress(tarred({"a.png": encoded()}))]


@given(whole=st.sampled_from(WHOLE), at=st.integers(0, 2000), new=st.binary(max_size=8))
def test_damage_of_any_kind_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, at: int, new: bytes
) -> None:
    at %= len(whole)
    with suppress(PictureError):
        read(tmp_path_factory.mktemp("damaged"), whole[:at] + new + whole[at + len(new) :], SMALL)
