"""Zips and tars: bombs, names of other places, links, wrong sizes, archives in archives."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from random import Random

from PIL import Image

from tests.images.test_archives import directory
from tests.images.test_user_images import encoded, tarred, zipped

from . import images
from .kind import Bench, Kind, as_file, names_field
from .mutation import INTEGERS, TEXTS, change_bytes

__all__ = ["KINDS"]

PNG, JPEG = encoded(), encoded(Image.new("RGB", (30, 20), "red"), "JPEG")
NAMES = ["a.png", "b.jpg", "../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png", "a/" * 500 + "a.png"]
NAMES += [".hidden.png", "__MACOSX/a.png", "folder/", "a.txt", "a.heic", "con.png", "a.png\0.txt", "", ".", ".."]
NAMES += [f"{text}.png" for text in TEXTS]
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
TYPES = (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"X", b"L", b"K", b"S", b"M", b"V", b"\0", b"\xff")
FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 6), (263, 2), (329, 8), (345, 155))
CLAIMS = (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1", b"77777777777\0", b"9999", b"\0" * 12, b"00000001000\0", b" ")
ZIP_PLACES = ((b"PK\x01\x02", 46), (b"PK\x03\x04", 30), (b"PK\x05\x06", 22), (b"PK\x06\x06", 56))


def zips(bench: Bench) -> list[bytes]:
    """Zips of images, of other files, with directories that lie, and single images."""
    both = {"a.png": PNG, "b.jpg": JPEG}
    some = [zipped(both), zipped(both, zipfile.ZIP_STORED), zipped({}), zipped({"a.txt": b"text"}), PNG]
    some += [directory(3), directory(3, zip64=True), directory(3, 2**31, zip64=True), directory(10_000)]
    return [*some, zipped({f"{i}.png": one for i, one in enumerate(images.seeds(bench)[:12])})]


def tars(_: Bench) -> list[bytes]:
    """Tars of images, plain and packed, and with every kind of entry."""
    whole = tarred({"a.png": PNG, "b.jpg": JPEG})
    odd = b"".join(_entry(kind, PNG) for kind in TYPES) + bytes(1024)
    return [
        whole,
        gzip.compress(whole, mtime=0),
        bz2.compress(whole),
        lzma.compress(whole),
        odd,
        gzip.compress(odd, mtime=0),
        tarred({}),
    ]


def change_zip(random: Random, data: bytes) -> bytes:
    """Another zip, or one whose headers say something else."""
    choice, changed = random.random(), bytearray(data)
    if choice < 0.4:
        return _zip(random)
    places = [(at, size) for mark, size in ZIP_PLACES if (at := data.find(mark)) >= 0]
    if choice < 0.8 and places:
        start, size = random.choice(places)
        length = random.choice((2, 4, 8))
        at = start + random.randrange(4, size)
        number = random.choice(INTEGERS) % 256**length
        changed[at : at + length] = number.to_bytes(length, "little")
        return bytes(changed)
    return change_bytes(random, data)


def change_tar(random: Random, data: bytes) -> bytes:
    """Another tar, or one whose headers say something else with a right checksum, packed or not."""
    choice = random.random()
    if choice < 0.3:
        members = {name: _content(random) for name in random.choices(NAMES[:12], k=random.randrange(1, 5))}
        return _packed(random, tarred(members))
    if choice < 0.8 and data[257:262] == b"ustar":
        changed = bytearray(data)
        _spoil_header(random, changed, 512 * random.randrange(max(1, len(data) // 512)))
        return _packed(random, bytes(changed))
    return change_bytes(random, data)


def _zip(random: Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", random.choice(METHODS)) as archive:
        for name in random.choices(NAMES, k=random.randrange(1, 6)):
            info = zipfile.ZipInfo(name.encode(errors="replace").decode(), (1980, 1, 1, 0, 0, 0))
            info.compress_type = random.choice(METHODS)
            info.external_attr = random.choice((0, 0o120777 << 16, 0o40755 << 16, 0xFFFFFFFF))  # a link, a folder
            archive.writestr(info, _content(random))
    return buffer.getvalue()


def _content(random: Random) -> bytes:
    """A member: an image, a changed one, a large one, zeros, or another archive."""
    match random.randrange(8):
        case 0:
            return bytes(random.choice((10**4, 10**7, 101 * 10**6)))
        case 1:
            return zipped({"a.png": PNG, "b.zip": zipped({"a.png": PNG})})
        case 2:
            return images.mutate(random, random.choice((PNG, JPEG)))
        case 3 if random.random() < 0.1:
            return images.flat(random)
        case 4:
            return random.randbytes(50)
    return random.choice((PNG, JPEG))


def _packed(random: Random, data: bytes) -> bytes:
    packers = (bytes, bytes, lambda plain: gzip.compress(plain, 1, mtime=0), lambda plain: bz2.compress(plain, 1))
    return random.choice(packers)(data)


def _entry(kind: bytes, data: bytes) -> bytes:
    info = tarfile.TarInfo("a.png")
    info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
    return info.tobuf() + data.ljust(-len(data) % 512 + len(data), b"\0")


def _spoil_header(random: Random, data: bytearray, start: int) -> None:
    at, size = random.choice(FIELDS)
    names = [name.encode(errors="replace") for name in NAMES]
    value = random.choice((*CLAIMS, *TYPES, *names, random.randbytes(size), b"25 path=../../evil.png\n"))
    data[start + at : start + at + size] = value[:size].ljust(size, b"\0")
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])


FIELD = "aesthetic_images"
KINDS = [
    Kind(name="zips", seeds=zips, mutate=change_zip, run=as_file(FIELD), names=names_field(FIELD)),
    Kind(name="tars", seeds=tars, mutate=change_tar, run=as_file(FIELD), names=names_field(FIELD)),
]
