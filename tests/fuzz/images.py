"""Images of every format that is read: real ones changed, and flat ones of a size near the limits."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pillow_heif
import tifffile
from PIL import Image

from tests.images import icc
from tests.images.test_user_images import chunk, encoded
from tests.snapshot import ROOT

from .kind import Bench, Kind, as_file, names_field
from .mutation import change_bytes, spoil_integer

__all__ = ["KINDS", "flat_png", "seeds"]

CASES = ROOT / "tests" / "cases"
CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"tEXt", b"acTL", b"fdAT")
SIDES = (1, 49, 51, 1000, 4000, 5700, 7200, 9000, 14_000, 16_384, 65_535)  # pixels
PACKED: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("TIFF", {"compression": f"tiff_{name}"}) for name in ("deflate", "lzw", "jpeg")),
    ("JPEG", {"progressive": True, "subsampling": 0}),
    ("AVIF", {"speed": 10}),
    ("WEBP", {"method": 0}),
    ("GIF", {}),
)
MARKS = b"ftyp ispe iloc iprp mdat av1C VP8X VP8L ALPH ANIM EXIF ICCP Exif acsp II* GIF8 BM".split(b" ")
MARKS += b"\xff\xc0 \xff\xc2 \xff\xda \xff\xe1 \xff\xe2".split(b" ")


def seeds(_: Bench) -> list[bytes]:
    """Images of every format in every mode that it has, with and without profile, EXIF and transparency; two bombs."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    image, exif = Image.fromarray(noise), Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif.tobytes(), "icc_profile": icc.rgb(icc.ADOBE, 2.2)}
    rgb, modes = image.convert("RGB"), [image.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "CMYK")]
    found = [path.read_bytes() for path in sorted(CASES.iterdir())]
    found += [encoded(rgb, kind, **options) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")]
    found += [heic(rgb, **options), heic(image), encoded(image, "WEBP", lossless=True), encoded(image, "AVIF")]
    found += [encoded(one, kind) for kind in ("PNG", "GIF", "BMP", "TIFF") for one in modes if _has(kind, one)]
    found += [encoded(rgb, "GIF", save_all=True, append_images=[rgb]), encoded(rgb, "JPEG", progressive=True)]
    found += [encoded(modes[-1], "JPEG"), encoded(rgb, "PNG", save_all=True, append_images=[rgb])]
    packings = ("packbits", "tiff_lzw", "jpeg", "tiff_deflate", "zstd", "lzma")
    found += [encoded(rgb, "TIFF", compression=packing) for packing in packings]
    found += [encoded(modes[0], "TIFF", compression=packing) for packing in ("group3", "group4", "tiff_ccitt")]
    slow = encoded(Image.new("RGB", (3000, 3000)), "JPEG", progressive=True)
    return [*found, *_tiffs(), flat_webp(7000, 7000), scanned_again(slow, 5000)]


def _has(kind: str, image: Image.Image) -> bool:
    try:
        return bool(encoded(image, kind))
    except (OSError, ValueError):  # the format does not have the mode
        return False


def _tiffs() -> list[bytes]:
    ramp, found = np.linspace(0, 1, 1200).reshape(20, 20, 3), []
    for dtype, scale in (("u1", 255), ("u2", 65535), ("f4", 1), ("i2", 9), ("f8", 1)):
        for options in (
            {},
            {"compression": "deflate"},
            {"byteorder": ">"},
            {"planarconfig": "separate"},
            {"tile": (16, 16)},
        ):
            buffer, pixels = io.BytesIO(), (ramp * scale).astype(dtype)
            is_planar = options.get("planarconfig") == "separate"
            tifffile.imwrite(buffer, pixels.transpose(2, 0, 1) if is_planar else pixels, photometric="rgb", **options)
            found.append(buffer.getvalue())
    return found


def heic(image: Image.Image, **options: object) -> bytes:
    """The image in HEIC."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=50, **options)
    return buffer.getvalue()


def mutate(random: Random, data: bytes) -> bytes:
    """Changed bytes, a PNG with other chunks and right checksums, a number near a mark, or a flat image."""
    choice = random.random()
    if choice < 0.02:
        return flat(random)
    if choice < 0.6 and data.startswith(b"\x89PNG"):
        return _rechunked(random, data)
    places = [at for mark in MARKS if (at := data.find(mark)) >= 0]
    if choice < 0.6 and places:
        changed = bytearray(data)
        spoil_integer(random, changed, random.choice(places) + random.randrange(40))
        return bytes(changed)
    return change_bytes(random, data)


def _rechunked(random: Random, data: bytes) -> bytes:
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(chunks) + 1)
        name, content = chunks[at % len(chunks)] if chunks else (b"IHDR", bytes(13))
        match random.randrange(5):
            case 0:
                chunks[at : at + 1] = [(name, change_bytes(random, content))]
            case 1:
                chunks.insert(
                    at, (random.choice(CHUNKS), random.choice((content, b"key\0\0" + zlib.compress(content))))
                )
            case 2:
                del chunks[at : at + 1]
            case 3:
                chunks[at : at + 1] = [(random.choice(CHUNKS), content)] * random.choice((1, 2, 50))
            case 4 if len(content) == 13:
                shape = struct.pack(
                    ">II5B", *random.choices(SIDES, k=2), *random.choices((0, 1, 2, 3, 4, 6, 8, 16), k=5)
                )
                chunks[at : at + 1] = [(name, random.choice((shape, shape[:8] + content[8:])))]
    return data[:8] + b"".join(chunk(name, content) for name, content in chunks)


def flat(random: Random) -> bytes:
    """A large image of one color in a small file."""
    width, height = random.choices(SIDES[3:-1], k=2)
    if random.random() < 0.4:
        return flat_webp(width, height)
    if random.random() < 0.8:
        return flat_png(width, height, random.choice((0, 2, 3, 4, 6)), random.choice((8, 8, 16)))
    image = Image.new("RGB", random.choices((1000, 4000, 5700), k=2))
    kind, options = random.choice(PACKED)
    data = encoded(image, kind, **options)
    return scanned_again(data, random.choice((1, 5, 20, 5000))) if kind == "JPEG" else data


def scanned_again(data: bytes, times: int) -> bytes:
    """A progressive JPEG with its last scan many times."""
    at = data.rfind(b"\xff\xda")
    return data[:at] + data[at:-2] * times + data[-2:]


def flat_webp(width: int, height: int) -> bytes:
    """A transparent WebP of 34 bytes."""
    small = bytearray(encoded(Image.new("RGBA", (1, 1)), "WEBP", lossless=True))
    bits = 1 << 28 | (min(height, 16_384) - 1) << 14 | (min(width, 16_384) - 1)
    at = small.index(b"VP8L") + 9
    small[at : at + 4] = bits.to_bytes(4, "little")
    return bytes(small)


def flat_png(width: int, height: int, color: int, depth: int) -> bytes:
    """A PNG of zeros. color: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA."""
    depth = 8 if color == 3 else depth
    packer, row = zlib.compressobj(1), bytes(1 + width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] * depth // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">II5B", width, height, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3)) + chunk(b"tRNS", b"\0") if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _init_image(folder: Path) -> Path:
    path = folder / "image"
    path.write_bytes(encoded(Image.new("RGB", (40, 30))))
    return path


def _kind(name: str, field: str, **others: Callable[[Path], Path]) -> Kind:
    fields = [field, *others]
    return Kind(name=name, seeds=seeds, mutate=mutate, run=as_file(field, **others), names=names_field(*fields))


KINDS = [_kind("images", "image"), _kind("masks", "mask", image=_init_image)]
