"""Inputs that are more than one value, written as text: a mix of aesthetics, and the stops of a sweep."""

import math
import re
from itertools import pairwise
from reprlib import repr as brief

from .errors import RequestError

__all__ = ["parse_mix", "parse_stops"]

MAX_PARTS = 16
MAX_STOPS = 12
MAX_STEPS = 100
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


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


def _weight(name: str, number: str) -> float:
    weight = float(number) if NUMBER.fullmatch(number) else math.nan
    if not abs(weight) <= 100:  # which nan is not either
        raise RequestError(f"aesthetic_mix: the weight of {brief(name)} must be -100 to 100, not {brief(number)}")
    return weight
