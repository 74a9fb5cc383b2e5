"""The rows of an evaluation, one a picture, and what they say: means over prompts, with intervals.

Prompts are what an evaluation samples from all that people might write, so they are the unit: what is drawn of one
prompt (seeds, aesthetics) is averaged first, and the bootstrap draws prompts. What personalisation does is measured
within a prompt, aesthetic and seed, as the difference from the picture of 0 steps: most of the spread between prompts
cancels out. This file knows numbers, no pictures and no model.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy import stats

from ..writing import whole

__all__ = ["Effect", "Interval", "Row", "effects", "interval", "read_rows", "write_rows"]

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture, seen with one aesthetic. Without steps, one picture serves all aesthetics.

    picture:    file name; "" if there is none: the safety checker kept it back, or it overflowed.
    similarity_to_aesthetic, similarity_to_prompt: -1..1, cosines in CLIP space; nan if there is no picture.
    score:      by LAION's predictor, some 1..10; nan if there is no picture, None if there is no predictor.
    """

    prompt: str
    aesthetic: str
    steps: int
    seed: int
    similarity_to_aesthetic: float
    similarity_to_prompt: float
    picture: str
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean, and the 95 % confidence interval around it; nan if there is nothing that it could come from."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a number of steps does. `aesthetic` is None for all of them together.

    to_aesthetic, to_prompt: similarity of the pictures, mean over prompts.
    gain, loss:              change from 0 steps: how much closer to the aesthetic, how much farther from the prompt.
    rows:                    that `gain` and `loss` come from.
    score, rise:             LAION's score of the pictures and its change from 0 steps; None without the predictor.
    """

    aesthetic: str | None
    steps: int
    to_aesthetic: Interval
    to_prompt: Interval
    gain: Interval
    loss: Interval
    rows: int
    score: Interval | None = None
    rise: Interval | None = None


def effects(rows: Sequence[Row]) -> list[Effect]:
    """The effect of each number of steps: first for all aesthetics together, then for each of them."""
    seen = [row for row in rows if row.picture]
    aesthetics = dict.fromkeys(row.aesthetic for row in rows)
    steps = sorted({row.steps for row in rows})
    is_scored = any(row.score is not None for row in rows)
    return [_effect(seen, aesthetic, step, is_scored=is_scored) for aesthetic in (None, *aesthetics) for step in steps]


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its percentile bootstrap interval: Efron & Tibshirani, 1993, chapter 13.

    One value has no interval, none has no mean either. The same values give the same interval each time.
    """
    if len(values) < 2:
        mean = values[0] if values else math.nan
        return Interval(mean=mean, low=math.nan, high=math.nan)
    found = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean=float(np.mean(values)), low=float(found.low), high=float(found.high))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV with a line of names. Scores have a column only where there are any."""
    lines = [asdict(row) for row in rows]
    names = [spec.name for spec in fields(Row)]
    if all(line["score"] is None for line in lines):
        names.remove("score")
    with whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(lines)


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(
                prompt=line["prompt"],
                aesthetic=line["aesthetic"],
                steps=int(line["steps"]),
                seed=int(line["seed"]),
                similarity_to_aesthetic=float(line["similarity_to_aesthetic"]),
                similarity_to_prompt=float(line["similarity_to_prompt"]),
                picture=line["picture"],
                score=float(line["score"]) if "score" in line else None,
            )
            for line in csv.DictReader(file)
        ]


def _effect(seen: Sequence[Row], aesthetic: str | None, steps: int, *, is_scored: bool) -> Effect:
    chosen = [row for row in seen if aesthetic in (None, row.aesthetic)]
    plain = {_what(row): row for row in chosen if row.steps == 0}
    there = [row for row in chosen if row.steps == steps]
    pairs = [(row, plain[_what(row)]) for row in there if _what(row) in plain]
    return Effect(
        aesthetic=aesthetic,
        steps=steps,
        to_aesthetic=_over_prompts((row.prompt, row.similarity_to_aesthetic) for row in there),
        to_prompt=_over_prompts((row.prompt, row.similarity_to_prompt) for row in there),
        gain=_over_prompts(
            (row.prompt, row.similarity_to_aesthetic - own.similarity_to_aesthetic) for row, own in pairs
        ),
        loss=_over_prompts((row.prompt, own.similarity_to_prompt - row.similarity_to_prompt) for row, own in pairs),
        rows=len(pairs),
        score=_over_prompts((row.prompt, _score(row)) for row in there) if is_scored else None,
        rise=_over_prompts((row.prompt, _score(row) - _score(own)) for row, own in pairs) if is_scored else None,
    )


def _score(row: Row) -> float:
    assert row.score is not None, "rows of one evaluation have scores, all or none"
    return row.score


def _what(row: Row) -> tuple[str, str, int]:
    """What a row and the picture of 0 steps that it is compared with have in common."""
    return row.prompt, row.aesthetic, row.seed


def _over_prompts(values: Iterable[tuple[str, float]]) -> Interval:
    """The interval of the prompts' own means."""
    of_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        of_prompt.setdefault(prompt, []).append(value)
    return interval([float(np.mean(of_one)) for of_one in of_prompt.values()])
