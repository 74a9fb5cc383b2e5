"""Inputs that are more than one value, written as text: a mix of aesthetics, the stops of a sweep, weighted words."""

import math
import re
from itertools import pairwise
from reprlib import repr as brief

from .errors import RequestError

__all__ = ["parse_mix", "parse_stops", "parse_weights"]

MAX_PARTS = 16
MAX_STOPS = 12
MAX_STEPS = 100
MAX_WEIGHT = 2.0  # of words in a prompt; beyond, pictures fall apart
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
WEIGHTED = re.compile(r"(?<!\\)\(((?:[^()\\]|\\[()]?)+):\s*([-+.0-9]+)\s*\)")  # (words:number)
STRAY = re.compile(r":\s*[-+.0-9]+\s*\)")  # the end of one, without its beginning


def parse_mix(text: str) -> dict[str, float]:
    """Names and weights of "fantasy:0.7 gloomcore:0.5 laion_7plus:-0.2"; a name alone weighs 1.

    Parts are separated by spaces or commas. Raises RequestError for anything else, for a name that comes twice,
    and for weights that are not finite numbers, or all zero.
    """
    parts = [part.partition(":") for part in re.split(r"[\s,]+", text) if part]
    if not 1 <= len(parts) <= MAX_PARTS:
        raise RequestError(f"aesthetic_mix takes 1 to {MAX_PARTS} aesthetics, not {len(parts)}")
    mix: dict[str, float] = {}
    for name, mark, number in parts:
        if not name or (mark and not number):
            raise RequestError(f"aesthetic_mix takes parts as fantasy:0.7, without spaces in them, not {brief(text)}")
        if name in mix:
            raise RequestError(f"aesthetic_mix names {brief(name)} twice")
        mix[name] = _weight(name, number) if mark else 1.0
    if not any(mix.values()):
        raise RequestError(f"aesthetic_mix {brief(text)} comes to nothing: at least one weight must not be 0")
    return mix


def parse_stops(text: str) -> tuple[int, ...]:
    """The numbers of steps in "0,2,5,10,20", each larger than the one before it.

    Raises RequestError for anything else.
    """
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    stops = [int(part) for part in parts if re.fullmatch(r"[0-9]{1,3}", part)]
    rising = all(low < high for low, high in pairwise(stops))
    if len(stops) < len(parts) or not 1 <= len(stops) <= MAX_STOPS or stops[-1] > MAX_STEPS or not rising:
        raise RequestError(
            f"aesthetic_sweep takes 1 to {MAX_STOPS} rising numbers of steps up to {MAX_STEPS}, as 0,2,5,10,20, "
            f"not {brief(text)}"
        )
    return tuple(stops)


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""The parts of a prompt with their weights: "a (red:1.3) cat" is "a ", "red" of weight 1.3, and " cat".

    Only (words:number) is a weight, and holds no other. Every other parenthesis or bracket is text, and so is \( or \),
    which loses its backslash. What has no weight has 1. Neighbours of one weight come as one part, so that weights of 1
    leave the text as it is without.

    Raises RequestError for a weight that is not 0 to 2, and for what ends like a weight and is none.
    """
    pieces = WEIGHTED.split(text)  # text, words, number, text, words, number, ..., text
    parts: list[tuple[str, float]] = []
    for i, piece in enumerate(pieces):
        if i % 3 == 2 or not piece:
            continue
        if i % 3 == 0 and (stray := STRAY.search(piece)):
            raise RequestError(
                f"long_prompt: {brief(stray[0])} ends no weight: write (words:1.3), one not inside another, "
                r"or \) for a parenthesis that is text"
            )
        weight = _prompt_weight(piece, pieces[i + 1]) if i % 3 else 1.0
        words = re.sub(r"\\([()])", r"\1", piece)
        if parts and parts[-1][1] == weight:
            words = parts.pop()[0] + words
        parts.append((words, weight))
    return parts


def _prompt_weight(words: str, number: str) -> float:
    weight = float(number) if NUMBER.fullmatch(number) else math.nan
    if not 0 <= weight <= MAX_WEIGHT:  # which nan is not either
        raise RequestError(
            f"long_prompt: the weight of {brief(words)} must be 0 to {MAX_WEIGHT:g}, not {brief(number)}; "
            r"write \( and \) for parentheses that are text"
        )
    return weight


def _weight(name: str, number: str) -> float:
    weight = float(number) if NUMBER.fullmatch(number) else math.nan
    if not abs(weight) <= 100:  # which nan is not either
        raise RequestError(f"aesthetic_mix: the weight of {brief(name)} must be -100 to 100, not {brief(number)}")
    return weight
