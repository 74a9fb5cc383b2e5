"""Inputs that are structured text: a mix of aesthetics, the steps of a sweep, a prompt with weights."""

import math
import re
from itertools import pairwise
from reprlib import repr as brief

from .errors import RequestError

__all__ = ["MAX_STEPS", "parse_mix", "parse_sweep", "parse_weights"]

MAX_PARTS = 16
MAX_STOPS = 12
MAX_STEPS = 100
MAX_WEIGHT = 2.0  # of words in a prompt; beyond it, images fall apart
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
PART = re.compile(r"[^\s,]+")
WEIGHTED = re.compile(r"(?<!\\)\(((?:[^()\\]|\\[()]?)+):\s*([-+.0-9]+)\s*\)")  # (words:number)
STRAY = re.compile(r":\s*[-+.0-9]+\s*\)")  # the end of a weight, without its beginning


def parse_mix(text: str) -> dict[str, float]:
    """Names and weights of "fantasy:0.7 gloomcore:0.5 laion_7plus:-0.2"; the weight of a name alone is 1.

    Parts are separated by spaces or commas. Raises RequestError for anything else, for a repeated name, and for
    weights that are out of range or all zero.
    """
    parts = [part.partition(":") for part in PART.findall(text)]
    if not 1 <= len(parts) <= MAX_PARTS:
        raise RequestError(f"aesthetic_mix takes 1 to {MAX_PARTS} aesthetics, not {len(parts)}")
    mix: dict[str, float] = {}
    for name, colon, number in parts:
        if not name or (colon and not number):
            raise RequestError(f"aesthetic_mix takes parts such as fantasy:0.7, without spaces, not {brief(text)}")
        if name in mix:
            raise RequestError(f"aesthetic_mix names {brief(name)} twice")
        mix[name] = _number(number) if colon else 1.0
        if not abs(mix[name]) <= 100:  # true for NaN
            raise RequestError(f"aesthetic_mix: the weight of {brief(name)} must be -100 to 100, not {brief(number)}")
    if not any(mix.values()):
        raise RequestError(f"aesthetic_mix {brief(text)} has only weights of 0: at least one must not be 0")
    return mix


def parse_sweep(text: str) -> tuple[int, ...]:
    """The numbers of steps in "0,2,5,10,20", in rising order. Raises RequestError for anything else."""
    parts = PART.findall(text)
    stops = [int(part) for part in parts if re.fullmatch(r"[0-9]{1,3}", part)]
    rising = all(low < high for low, high in pairwise(stops))
    if len(stops) < len(parts) or not 1 <= len(stops) <= MAX_STOPS or stops[-1] > MAX_STEPS or not rising:
        raise RequestError(
            f"aesthetic_sweep takes 1 to {MAX_STOPS} rising numbers of steps up to {MAX_STEPS}, such as 0,2,5,10,20, "
            f"not {brief(text)}"
        )
    return tuple(stops)


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""The parts of a prompt with their weights: "a (red:1.3) cat" is "a ", "red" with weight 1.3, and " cat".

    Only (words:number) is a weight, and weights can't be nested. Every other parenthesis or bracket is text, as are
    \( and \), which lose their backslash. Text without a weight has weight 1. Neighbors of equal weight are joined, so
    that weights of 1 leave the text unchanged.

    Raises RequestError for a weight outside 0 to 2, and for the end of a weight without its beginning.
    """
    pieces = WEIGHTED.split(text)  # text, words, number, text, words, number, ..., text
    parts: list[tuple[str, float]] = []
    for i, piece in enumerate(pieces):
        if i % 3 == 2 or not piece:
            continue
        if i % 3 == 0 and (stray := STRAY.search(piece)):
            raise RequestError(
                f"long_prompt: {brief(stray[0])} ends a weight that has no beginning: write (words:1.3), without "
                r"nesting, or \) for a parenthesis that is text"
            )
        weight = _prompt_weight(piece, pieces[i + 1]) if i % 3 else 1.0
        words = re.sub(r"\\([()])", r"\1", piece)
        if parts and parts[-1][1] == weight:
            words = parts.pop()[0] + words
        parts.append((words, weight))
    return parts


def _prompt_weight(words: str, number: str) -> float:
    weight = _number(number)
    if not 0 <= weight <= MAX_WEIGHT:  # true for NaN
        raise RequestError(
            f"long_prompt: the weight of {brief(words)} must be 0 to {MAX_WEIGHT:g}, not {brief(number)}; "
            r"write \( and \) for parentheses that are text"
        )
    return weight


def _number(text: str) -> float:
    """A decimal number, or NaN: float() also accepts "nan", "1_0" and other scripts' digits."""
    return float(text) if NUMBER.fullmatch(text) else math.nan
