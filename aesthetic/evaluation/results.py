"""The rows of an evaluation, one per image, and what they say: means over prompts, with intervals.

Prompts are the unit of the bootstrap, since they are what an evaluation samples from all possible prompts: the images
of one prompt (seeds, aesthetics) are averaged first. The effect of personalization is measured within a prompt,
aesthetic and seed, as the difference from the image of 0 steps, which cancels most of the spread between prompts.
This file knows numbers, not images or models.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from ..writing import whole

__all__ = ["Effect", "Interval", "Measure", "Row", "effects", "interval", "read_rows", "write_rows"]

KEYS = ("prompt", "aesthetic", "steps", "seed")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that a judge gives each image.

    column:  in results.csv.
    title:   its column in the report.
    change:  the report's word for its change from 0 steps.
    axis:    the label of its change in plots.
    is_loss: whether the change is reported as a loss: positive where the number falls.
    """

    column: str
    title: str
    change: str
    axis: str
    is_loss: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image, scored for one aesthetic. At 0 steps, one image serves all aesthetics.

    image:   file name; "" if the safety checker blocked the image or the denoising overflowed.
    numbers: by the measures' columns, two or more; nan without an image.
    """

    prompt: str
    aesthetic: str
    steps: int
    seed: int
    image: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its 95 % confidence interval; nan if there are too few values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of a number of steps. `aesthetic` is None for all of them together.

    means:   of each measure, by its column: means over prompts.
    changes: of each measure from 0 steps; a loss is positive where the number falls.
    rows:    how many `changes` come from.
    """

    aesthetic: str | None
    steps: int
    means: Mapping[str, Interval]
    changes: Mapping[str, Interval]
    rows: int


def effects(rows: Sequence[Row], measures: Sequence[Measure]) -> list[Effect]:
    """The effect of each number of steps: first for all aesthetics together, then for each of them."""
    seen = [row for row in rows if row.image]
    aesthetics = dict.fromkeys(row.aesthetic for row in rows)
    steps = sorted({row.steps for row in rows})
    return [_effect(seen, measures, aesthetic, step) for aesthetic in (None, *aesthetics) for step in steps]


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its percentile bootstrap interval: Efron & Tibshirani, 1993, chapter 13.

    A single value has no interval, and an empty sequence has no mean. The same values always give the same interval.
    """
    if len(values) < 2:
        return Interval(mean=values[0] if values else math.nan, low=math.nan, high=math.nan)
    rng = np.random.default_rng(0)
    found = stats.bootstrap(
        (np.asarray(values),), np.mean, confidence_level=0.95, method="percentile", rng=rng
    ).confidence_interval
    return Interval(mean=float(np.mean(values)), low=float(found.low), high=float(found.high))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV with a header line. The file name stands after the first two measures."""
    found = list(rows)
    first, second, *others = found[0].numbers
    with whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*KEYS, first, second, "picture", *others], lineterminator="\n")
        table.writeheader()
        for row in found:
            table.writerow({**{key: getattr(row, key) for key in KEYS}, "picture": row.image, **row.numbers})


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(
                prompt=line.pop("prompt"),
                aesthetic=line.pop("aesthetic"),
                steps=int(line.pop("steps")),
                seed=int(line.pop("seed")),
                image=line.pop("picture"),
                numbers={column: float(number) for column, number in line.items()},
            )
            for line in csv.DictReader(file)
        ]


def _effect(seen: Sequence[Row], measures: Sequence[Measure], aesthetic: str | None, steps: int) -> Effect:
    chosen = [row for row in seen if aesthetic in (None, row.aesthetic)]
    plain = {_pair(row): row for row in chosen if row.steps == 0}
    there = [row for row in chosen if row.steps == steps]
    pairs = [(row, plain[_pair(row)]) for row in there if _pair(row) in plain]
    means, changes = {}, {}
    for one in measures:
        means[one.column] = _over_prompts((row.prompt, row.numbers[one.column]) for row in there)
        before_after = ((row.prompt, own.numbers[one.column], row.numbers[one.column]) for row, own in pairs)
        changes[one.column] = _over_prompts((name, a - b if one.is_loss else b - a) for name, a, b in before_after)
    return Effect(aesthetic=aesthetic, steps=steps, means=means, changes=changes, rows=len(pairs))


def _pair(row: Row) -> tuple[str, str, int]:
    """What a row shares with the image of 0 steps that it is compared with."""
    return row.prompt, row.aesthetic, row.seed


def _over_prompts(values: Iterable[tuple[str, float]]) -> Interval:
    """The interval of each prompt's mean."""
    of_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        of_prompt.setdefault(prompt, []).append(value)
    return interval([float(np.mean(of_one)) for of_one in of_prompt.values()])
