"""The report of rows whose effects are known: its text, its plots and its sheet."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aesthetic.evaluation import report
from aesthetic.evaluation.judges import CLIP_MEASURES, SCORE, clip_judge
from aesthetic.evaluation.results import Effect, Row, effects
from tests.evaluation.test_results import GAIN, LOSS, ROWS, rescored

NAMES = ("a", "_$b")
BOTH = [*ROWS, *(rescored(replace(one, aesthetic="_$b"), **{GAIN: one.numbers[GAIN] / 2}) for one in ROWS)]
SETTINGS: Mapping[str, Any] = {
    "model": "tiny",
    "revision": "local",
    "prompts": ["p", "q"],
    "aesthetics": {"a": "", "*b": ""},
    "steps": [0, 5],
    "seeds": 2,
    "width": 128,
    "height": 64,
    "num_inference_steps": 3,
    "scheduler": "DDIM",
    "guidance_scale": 7.5,
    "aesthetic_lr": 0.01,
}


def test_the_text_has_the_settings_and_a_table_for_all_and_each() -> None:
    rows = [*ROWS, replace(ROWS[0], aesthetic="*b"), replace(ROWS[4], aesthetic="*b", image="")]
    judge = clip_judge(None)
    assert report._text(effects(rows, judge.measures), rows, SETTINGS, judge).split("\n\n") == [
        "# What aesthetic gradients do",
        "tiny (revision local): 2 prompts × 2 aesthetics × 2 numbers of steps × 2 seeds, 128 × 64 pixels, "
        "3 denoising steps with DDIM, guidance 7.5, aesthetic_lr 0.01.",
        judge.explanation,
        "Means over prompts, with 95 % bootstrap intervals that resample prompts: they predict the results of other "
        "prompts of this kind, not of other aesthetics.",
        "1 of 10 rows have no image (blocked by the safety checker, or overflowed).",
        "## All aesthetics",
        "| steps | to the aesthetic | gain | to the prompt | loss | rows |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 0 | 0.0667 |  | 0.2500 |  | 5 |\n"
        "| 5 | 0.2750 | +0.2000 (+0.1000 to +0.3000) | 0.2400 | +0.0100 (+0.0000 to +0.0200) | 4 |",
        "![Gain against loss](tradeoff.png)",
        "![Gain and loss by steps](steps.png)",
        "![Images](sheet.png)",
        "## a",
        "| steps | to the aesthetic | gain | to the prompt | loss | rows |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 0 | 0.0750 |  | 0.2500 |  | 4 |\n"
        "| 5 | 0.2750 | +0.2000 (+0.1000 to +0.3000) | 0.2400 | +0.0100 (+0.0000 to +0.0200) | 4 |",
        "## ?b",
        "| steps | to the aesthetic | gain | to the prompt | loss | rows |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 0 | 0.1000 |  | 0.3000 |  | 1 |\n"
        "| 5 | nan | +nan | nan | +nan | 0 |\n",
    ]
    whole = report._text(effects(ROWS, judge.measures), ROWS, SETTINGS, judge)
    assert "no image" not in whole


def ends(effects: list[Effect], column: str) -> list[float]:
    """Low and high of each interval, in a row."""
    changes = [one.changes[column] for one in effects]
    return [end for change in changes for end in (change.low, change.high)]


def drawn_ends(bars: Any, coordinate: int) -> list[float]:
    return [end[coordinate] for segment in bars.get_segments() for end in segment]


def test_gain_is_plotted_against_loss_with_both_intervals() -> None:
    found = effects(BOTH, CLIP_MEASURES)
    figure = report._tradeoff(found, CLIP_MEASURES)
    [axes] = figure.axes
    containers: list[Any] = list(axes.containers)
    for name, drawn in zip((*NAMES, None), containers, strict=True):
        points, _, (across, up) = drawn.lines
        own = [one for one in found if one.aesthetic == name]
        assert points.get_xdata().tolist() == [one.changes[LOSS].mean for one in own]
        assert points.get_ydata().tolist() == [one.changes[GAIN].mean for one in own]
        assert drawn_ends(across, 0) == pytest.approx(ends(own, LOSS))
        assert drawn_ends(up, 1) == pytest.approx(ends(own, GAIN))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" a", r" _\$b", "all"]
    assert [(text.get_text(), text.xy) for text in axes.texts] == [  # type: ignore[attr-defined]
        (f" {one.steps}", (one.changes[LOSS].mean, one.changes[GAIN].mean)) for one in found if one.aesthetic is None
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (CLIP_MEASURES[1].axis, CLIP_MEASURES[0].axis)


def test_each_change_is_plotted_by_steps_with_its_interval() -> None:
    measures = (*CLIP_MEASURES, SCORE)
    found = effects([rescored(one, score=one.numbers[GAIN] + one.steps) for one in BOTH], measures)
    figure = report._by_steps(found, measures)
    for measure, axes in zip(measures, figure.axes, strict=True):
        containers: list[Any] = list(axes.containers)
        for name, drawn in zip((*NAMES, None), containers, strict=True):
            points, _, [up] = drawn.lines
            own = [one for one in found if one.aesthetic == name]
            assert points.get_xdata().tolist() == [0, 5]
            assert points.get_ydata().tolist() == [one.changes[measure.column].mean for one in own]
            assert drawn_ends(up, 1) == pytest.approx(ends(own, measure.column))
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", measure.axis)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" a", r" _\$b", "all"]


def test_the_sheet_has_another_prompt_for_each_aesthetic_and_the_first_seed(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    rows: list[Row] = []
    for i, one in enumerate(BOTH):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / "pictures" / f"{i}.png")
        rows.append(replace(one, image=f"{i}.png"))
    rows[12] = replace(rows[12], image="")  # p, 5 steps, of the second
    sheet = report._sheet(tmp_path, [*rows[8:], *rows[:8]])
    left, top = sheet.width - 2 * 264, sheet.height - 2 * 264
    cells = [[sheet.getpixel((left + x * 264 + 128, top + y * 264 + 128)) for x in (0, 1)] for y in (0, 1)]
    assert cells == [[(80,) * 3, (255,) * 3], [(20,) * 3, (60,) * 3]]


def test_each_of_many_aesthetics_has_its_own_color() -> None:
    found = effects([replace(one, aesthetic=f"{i}") for i in range(15) for one in ROWS], CLIP_MEASURES)
    for figure in (report._tradeoff(found, CLIP_MEASURES), report._by_steps(found, CLIP_MEASURES)):
        for axes in figure.axes:
            bars: list[Any] = list(axes.containers)
            assert len({tuple(one.lines[0].get_color()) for one in bars}) == len(bars) == 16
        [legend] = figure.legends
        assert len(legend.get_texts()) == 16
