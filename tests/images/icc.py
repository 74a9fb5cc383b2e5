"""Color profiles written byte by byte, after ICC.1: what they do is known in closed form."""

import struct

Tags = dict[bytes, bytes]

# Columns of sRGB's and of Adobe RGB's primaries, adapted to D50. As in many profiles, sRGB's are rounded: converted
# with them, some values of sRGB change by one of 255.
SRGB = ((0.4363, 0.2227, 0.0141), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))


def profile(clip_space: bytes, tags: Tags, *, pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A profile of a color space, with its tags."""
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"none", 0x04300000, kind, clip_space, pcs)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def rgb(primaries: tuple[tuple[float, ...], ...], gamma: float | None, **more: bytes) -> bytes:
    """A profile of three primaries and a gamma; None: the curve of sRGB, as a table."""
    colors = {name + b"XYZ": _xyz(*column) for name, column in zip((b"r", b"g", b"b"), primaries, strict=True)}
    curve = _table(256) if gamma is None else _gamma(gamma)
    curves = {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    return profile(b"RGB ", {**_WHITE, **colors, **curves, **{name.encode(): data for name, data in more.items()}})


def gray(gamma: float) -> bytes:
    """A profile of gray with a gamma."""
    return profile(b"GRAY", {**_WHITE, b"kTRC": _gamma(gamma)})


def cmyk() -> bytes:
    """A profile of inks that are gray: cyan darkens to L* 50, the others change nothing."""
    corners = b"".join(bytes([128 if cyan else 255, 128, 128]) for cyan in (0, 1) for _ in range(8))
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * ramp + corners + 3 * ramp
    return profile(b"CMYK", {**_WHITE, b"A2B0": table}, pcs=b"Lab ", kind=b"prtr")


def bomb(elements: int) -> bytes:
    """A profile of RGB whose colors go through one and the same curve of 500 pieces, so many times."""
    piece = b"parf\0\0\0\0" + struct.pack(">HH4f", 0, 0, 1, 1, 0, 0)
    curve = b"curf\0\0\0\0" + struct.pack(">HH499f", 500, 0, *(i * 1e-9 for i in range(499))) + 500 * piece
    curves = b"cvst\0\0\0\0" + struct.pack(">HH", 3, 3) + 3 * struct.pack(">II", 36, len(curve)) + curve
    places = elements * struct.pack(">II", 16 + 8 * elements, len(curves))
    return rgb(SRGB, 2.2, D2B1=b"mpet\0\0\0\0" + struct.pack(">HHI", 3, 3, elements) + places + curves)


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(value: float) -> bytes:
    return b"para" + bytes(8) + struct.pack(">i", round(value * 65536))


def _table(entries: int) -> bytes:
    """The curve of sRGB as a table, as in the profiles that most cameras and scanners write."""
    steps = [i / (entries - 1) for i in range(entries)]
    linear = [step / 12.92 if step <= 0.04045 else ((step + 0.055) / 1.055) ** 2.4 for step in steps]
    return struct.pack(f">4s4xI{entries}H", b"curv", entries, *(round(65535 * value) for value in linear))


_WHITE: Tags = {b"wtpt": _xyz(0.9642, 1, 0.8249)}
