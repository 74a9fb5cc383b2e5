"""Change bytes and JSON at random, with the values at which programs break."""

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

__all__ = ["INTEGERS", "MAX_BYTES", "TEXTS", "change_bytes", "change_json", "spoil_integer"]

MAX_BYTES = 2 * 10**6  # of an input
POWERS = (3, 7, 8, 12, 14, 15, 16, 24, 31, 32, 53, 62, 63, 64)
INTEGERS: tuple[int, ...] = (0, 1, 2, *(2**power - less for power in POWERS for less in (0, 1)))
TEXTS = [
    "../../evil",
    "/etc/passwd",
    "C:\\evil",
    "~",
    "%s%n",
    "{0}",
    "\x1b[31m",
    "\u202eevil",
    "１２",
    "İ",
    "é̂́",
    "null",
]
TEXTS += ["NaN", "nan", "1e999", "-0", "0x10", "", " ", "\n", "\0", "\ufeff", "\ud800", "🙂" * 50, "a" * 5000]
NUMBERS = (-1, -(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"))
VALUES: tuple[Any, ...] = (*TEXTS, *INTEGERS, *NUMBERS, None, True, False, [], {}, [[]], {"": {}}, [0] * 1000)


def change_bytes(random: Random, data: bytes) -> bytes:
    """`data` with one to eight changes: bits, numbers, pieces removed, doubled, put in or cut off."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        _change(random, changed)
    return bytes(changed)


def _change(random: Random, data: bytearray) -> None:
    at, length = random.randrange(len(data) + 1), random.choice((1, 2, 4, 8, 16, 64, 512))
    match random.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << random.randrange(8)
        case 1:
            spoil_integer(random, data, at)
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = random.randbytes(length)
        case 4:
            start = random.randrange(len(data) + 1)
            data[at:at] = data[start : start + length] * random.choice((1, 1, 2, 100))
        case 5:
            data[at : at + length] = bytes([random.choice((0, 255, 32, 128))]) * length
        case 6 if random.random() < 0.3:
            del data[at:]


def spoil_integer(random: Random, data: bytearray, at: int) -> None:
    """Write a number of 1 to 8 bytes over those at a place."""
    size = random.choice((1, 2, 4, 8))
    number = random.choice(INTEGERS) + random.choice((0, 0, -1, 1))
    data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, random.choice(("little", "big")))


def change_json(random: Random, value: Any, others: Sequence[Any] = ()) -> Any:
    """`value` with one to three places changed, put in, removed or nested. others: more values to choose from."""
    root = [copy.deepcopy(value)]
    for _ in range(random.choice((1, 1, 2, 3))):
        holder, key = _place(random, root)
        holder[key] = _other(random, holder[key], others)
    return root[0]


def _place(random: Random, root: list[Any]) -> tuple[Any, Any]:
    """A random place in nested lists and dictionaries."""
    holder, key = root, 0
    while isinstance(holder[key], dict | list) and holder[key] and random.random() < 0.9:
        holder = holder[key]
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    return holder, key


def _other(random: Random, value: Any, others: Sequence[Any]) -> Any:
    match random.randrange(6):
        case 0 if isinstance(value, dict) and value:
            gone = random.choice(list(value))
            return {random.choice(TEXTS) if key == gone and random.random() < 0.5 else key: value[key] for key in value}
        case 1 if isinstance(value, dict):
            return {**value, random.choice(TEXTS): random.choice(VALUES)}
        case 2 if isinstance(value, list):
            return value * random.choice((0, 2, 3)) + [random.choice(VALUES)]
        case 3 if isinstance(value, str):
            return change_bytes(random, value.encode(errors="replace")).decode(errors="replace")
        case 4 if isinstance(value, int):
            return value + random.choice((-1, 1, 2**32))
        case 5:
            return json.loads("[" * (deep := random.choice((1, 10, 900))) + "]" * deep)
    return random.choice((*VALUES, *others))
