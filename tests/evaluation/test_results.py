"""Means and intervals of rows, against values worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from aesthetic.evaluation.judges import CLIP_MEASURES, SCORE
from aesthetic.evaluation.results import Effect, Interval, Row, effects, interval, read_rows, write_rows


def row(prompt: str, steps: int, seed: int, to_aesthetic: float, to_prompt: float, aesthetic: str = "a") -> Row:
    return Row(
        prompt=prompt,
        aesthetic=aesthetic,
        steps=steps,
        seed=seed,
        image="x.png",
        numbers={"similarity_to_aesthetic": to_aesthetic, "similarity_to_prompt": to_prompt},
    )


GAIN, LOSS = (measure.column for measure in CLIP_MEASURES)


def rescored(row: Row, **numbers: float) -> Row:
    return replace(row, numbers={**row.numbers, **numbers})


# Both seeds of prompt p gain 0.1 and lose 0.02. Those of q gain 0.2 and 0.4, 0.3 in the mean, and lose nothing.
ROWS = [
    *(row("p", 0, 1, 0.1, 0.3), row("p", 0, 2, 0.2, 0.3), row("q", 0, 1, 0.0, 0.2), row("q", 0, 2, 0.0, 0.2)),
    *(row("p", 5, 1, 0.2, 0.28), row("p", 5, 2, 0.3, 0.28), row("q", 5, 1, 0.2, 0.2), row("q", 5, 2, 0.4, 0.2)),
]


def effect(rows: list[Row], steps: int, aesthetic: str | None = None) -> Effect:
    measures = [*CLIP_MEASURES, SCORE][: len(rows[0].numbers)]
    [found] = [one for one in effects(rows, measures) if one.steps == steps and one.aesthetic == aesthetic]
    return found


def triple(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high


def test_differences_are_paired_and_prompts_are_the_unit() -> None:
    found = effect(ROWS, 5)
    # A quarter of all resamples of two prompts hold only the first, and a quarter only the second.
    assert triple(found.changes[GAIN]) == pytest.approx((0.2, 0.1, 0.3))
    assert triple(found.changes[LOSS]) == pytest.approx((0.01, 0.0, 0.02))
    assert triple(found.means[GAIN]) == pytest.approx((0.275, 0.25, 0.3))
    assert triple(found.means[LOSS]) == pytest.approx((0.24, 0.2, 0.28))
    assert found.rows == 4
    assert triple(effect(ROWS, 0).changes[GAIN]) == (0, 0, 0)


def test_aesthetics_are_separate_and_averaged() -> None:
    other = [rescored(replace(one, aesthetic="b"), **{GAIN: 0.5}) for one in ROWS]
    both = [*ROWS, *other]
    assert [(one.aesthetic, one.steps) for one in effects(both, CLIP_MEASURES)] == [
        (name, steps) for name in (None, "a", "b") for steps in (0, 5)
    ]
    assert effect(both, 5, "a") == replace(effect(ROWS, 5), aesthetic="a")
    assert effect(both, 5, "b").changes[GAIN].mean == 0
    assert effect(both, 5).changes[GAIN].mean == pytest.approx(0.1)


def test_a_missing_image_takes_its_pair_along() -> None:
    for i in (0, 4):  # seed 1 of p, without steps and with
        rows = [*ROWS[:i], rescored(replace(ROWS[i], image=""), **{GAIN: math.nan}), *ROWS[i + 1 :]]
        found = effect(rows, 5)
        assert found.rows == 3
        assert found.changes[GAIN].mean == pytest.approx(0.2)


def test_scores_are_compared_as_similarities_are() -> None:
    scored = [rescored(one, score=5 + 10 * one.numbers[GAIN]) for one in ROWS]
    found = effect(scored, 5)
    assert triple(found.means["score"]) == pytest.approx((7.75, 7.5, 8))
    assert triple(found.changes["score"]) == pytest.approx((2, 1, 3))
    assert found.changes[GAIN] == effect(ROWS, 5).changes[GAIN]
    missing = [rescored(replace(one, image=""), score=math.nan) if one.steps else one for one in scored]
    assert math.isnan(effect(missing, 5).means["score"].mean)


def test_an_interval_is_that_of_all_resamples() -> None:
    # 8 of the 27 resamples of three values hold only zeros, and one (4 %) only threes.
    found = interval([0.0, 0.0, 3.0])
    assert (found.mean, found.low, found.high) == (1, 0, 3)
    assert interval([0.0, 0.0, 3.0]) == found
    assert interval([2.0] * 5) == replace(found, mean=2, low=2, high=2)


def test_one_value_has_no_interval_and_an_empty_sequence_no_mean() -> None:
    found = interval([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(interval([]).mean)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [*ROWS, row('a "cat",\nsitting', 3, 2**32 - 1, 0.1 + 0.2, -1 / 3)]
    write_rows(tmp_path / "x.csv", rows)
    assert read_rows(tmp_path / "x.csv") == rows
    assert "score" not in (tmp_path / "x.csv").read_text()
    scored = [rescored(one, score=i / 3) for i, one in enumerate(rows)]
    write_rows(tmp_path / "x.csv", scored)
    assert read_rows(tmp_path / "x.csv") == scored
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    def stopped() -> object:
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / "x.csv", stopped())  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.csv"))
