"""Archives from users, friendly and hostile, whose claims are not trusted."""

import gzip
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

import pytest

from aesthetic import cancellation
from aesthetic.images.user_images import LOCAL, UPLOAD, read_images
from tests.images.test_user_images import encoded, read, refusal, tarred, zipped


def directory(entries: int, claimed: int | None = None, *, zip64: bool = False, count: int | None = None) -> bytes:
    """A zip with empty files in its directory, and an end record that claims `claimed` bytes and `count` files."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0) + b"a.txt"
    first = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 33, 0, 0, 0, 5, 0) + b"a.txt"
    body = first + entry * entries
    size, count = len(entry) * entries if claimed is None else claimed, entries if count is None else count
    if not zip64:
        return body + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count % 2**16, count % 2**16, size, len(first), 0)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, len(first))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(body), 1)
    return body + record + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)


def test_zipfile_reads_the_directory(tmp_path: Path) -> None:
    for data in (directory(100), directory(100, zip64=True)):
        (tmp_path / "a.zip").write_bytes(data)
        with zipfile.ZipFile(tmp_path / "a.zip") as content:
            assert len(content.infolist()) == 100


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("count", [None, 1])
def test_refuses_a_large_directory_before_it_is_parsed(tmp_path: Path, zip64: bool, count: int | None) -> None:
    data = directory(1_000_000, zip64=zip64, count=count)
    began = time.process_time()
    tracemalloc.start()
    message = refusal(tmp_path, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message == "file needs 51,000,000 bytes to list its files; 2,560,000 are read, for at most 5000 files"
    assert time.process_time() - began < 1
    assert peak < 5 * 10**6


@pytest.mark.parametrize("claimed", [0, 51, 2**31, 2**62])
def test_a_directory_of_another_length_than_it_claims_is_not_parsed(tmp_path: Path, claimed: int) -> None:
    data = directory(1_000_000, claimed, zip64=True)
    began = time.process_time()
    refusal(tmp_path, data)
    assert time.process_time() - began < 1


def test_a_full_upload_fits(tmp_path: Path) -> None:
    long = {f"{'a' * 150}/{i:04}.txt": b"" for i in range(4999)}
    assert len(read(tmp_path, zipped(long | {"a.png": encoded()}))) == 1


def test_refuses_an_archive_that_is_itself_too_large(tmp_path: Path) -> None:
    caps = replace(UPLOAD, total_bytes=10**6)
    for data in (zipped({"a.png": bytes(2 * 10**6)}, zipfile.ZIP_STORED), tarred({"a.png": bytes(2 * 10**6)})):
        assert refusal(tmp_path, data, caps) == "file has 2 MB; an archive may have at most 1 MB"


@pytest.mark.parametrize("name", ["../a.png", "../../a.png", "..\\a.png", "/etc/a.png", "C:/pics/a.png", "C:\\a.png"])
def test_a_name_is_not_used_as_a_path(tmp_path: Path, name: str) -> None:
    for data in (zipped({name: encoded()}), tarred({name: encoded()})):
        assert [found for found, _ in read(tmp_path, data)] == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", [".a.png", "../.a.png", ".b/a.png", "b\\.c\\a.png", "C:/.b/a.png", "__MACOSX/a.png"])
def test_hidden_files_are_skipped(tmp_path: Path, name: str) -> None:
    assert "file holds no image" in refusal(tmp_path, zipped({name: encoded()}))


def folder(path: Path) -> None:
    path.mkdir()
    (path / "a.txt").write_bytes(b"text")


@pytest.mark.parametrize(
    "write",
    [
        folder,
        lambda path: path.write_bytes(encoded()),
        lambda path: path.write_bytes(zipped({"a.txt": b""})),
        lambda path: path.write_bytes(tarred({"a.txt": b""})),
        lambda path: path.write_bytes(gzip.compress(tarred({"a.txt": bytes(10**6)}))),
    ],
)
def test_reading_ends_once_it_is_canceled(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path / "likes")
    context, wait = copy_context(), cancellation._Wait()
    context.run(cancellation._wait.set, wait)
    wait.over = True
    with pytest.raises(cancellation.Canceled):
        context.run(lambda: list(read_images(tmp_path / "likes", LOCAL)))
