"""The report of an evaluation: report.md with tables, plots, and a sheet of images, all in its folder.

matplotlib, which requirements-evaluate.txt installs, draws the plots; only this file needs it.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..images.sheet import contact_sheet, steps_label
from .judges import Judge
from .results import Effect, Interval, Measure, Row, effects

__all__ = ["write"]

MAX_ROWS = 12  # of the sheet
MAX_LETTERS = 40  # of a prompt beside a row

logging.getLogger("matplotlib").setLevel(logging.WARNING)


def write(folder: Path, rows: Sequence[Row], settings: Mapping[str, Any], judge: Judge) -> None:
    """Write report.md, tradeoff.png, steps.png and sheet.png to `folder`, from all rows of an evaluation.

    settings: of evaluate.Plan.settings.
    judge:    the one that gave the rows their numbers.
    """
    measures = judge.measures
    found = effects(rows, measures)
    _tradeoff(found, measures).savefig(folder / "tradeoff.png", dpi=150)
    _by_steps(found, measures).savefig(folder / "steps.png", dpi=150)
    _sheet(folder, rows).save(folder / "sheet.png")
    (folder / "report.md").write_text(_text(found, rows, settings, judge), encoding="utf-8")


def _text(found: Sequence[Effect], rows: Sequence[Row], settings: Mapping[str, Any], judge: Judge) -> str:
    missing = sum(not row.image for row in rows)
    names = list(settings["aesthetics"])
    parts = [
        "# What aesthetic gradients do",
        f"{settings['model']} (revision {settings['revision']}): {len(settings['prompts'])} prompts × {len(names)} "
        f"aesthetics × {len(settings['steps'])} numbers of steps × {settings['seeds']} seeds, "
        f"{settings['width']} × {settings['height']} pixels, {settings['num_inference_steps']} denoising steps with "
        f"{settings['scheduler']}, guidance {settings['guidance_scale']}, aesthetic_lr {settings['aesthetic_lr']}.",
        judge.explanation,
        "Means over prompts, with 95 % bootstrap intervals that resample prompts: they predict the results of other "
        "prompts of this kind, not of other aesthetics.",
    ]
    if missing:
        parts.append(f"{missing} of {len(rows)} rows have no image (blocked by the safety checker, or overflowed).")
    parts += ["## All aesthetics", _table([one for one in found if one.aesthetic is None], judge.measures)]
    parts += ["![Gain against loss](tradeoff.png)", "![Gain and loss by steps](steps.png)", "![Images](sheet.png)"]
    for name in names:
        parts += [f"## {_plain(name)}", _table([one for one in found if one.aesthetic == name], judge.measures)]
    return "\n\n".join(parts) + "\n"


def _table(found: Sequence[Effect], measures: Sequence[Measure]) -> str:
    columns = ["steps", *(word for one in measures for word in (one.title, one.change)), "rows"]
    lines = [columns, ["---:"] * len(columns)]
    for effect in found:
        cells = [str(effect.steps)]
        for one in measures:
            change = _signed(effect.changes[one.column]) if effect.steps else ""  # 0 steps is the baseline
            cells += [f"{effect.means[one.column].mean:.4f}", change]
        lines.append([*cells, str(effect.rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _signed(value: Interval) -> str:
    if math.isnan(value.low):
        return f"{value.mean:+.4f}"
    return f"{value.mean:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def _plain(name: str) -> str:
    """A file's name without Markdown's special characters."""
    return "".join(letter if letter.isalnum() or letter in "-_ ." else "?" for letter in name)


def _tradeoff(found: Sequence[Effect], measures: Sequence[Measure]) -> Figure:
    """Gain (up is better) against loss (right is worse), with a point for each number of steps."""
    gain, loss = measures[:2]
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    _plot(axes, found, gain, loss)
    for effect in found:
        if effect.aesthetic is None and effect.rows:
            point = effect.changes[loss.column].mean, effect.changes[gain.column].mean
            axes.annotate(f" {effect.steps}", point, va="bottom", weight="bold")
    axes.set_title("What is gained for what is lost, by steps")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return figure


def _by_steps(found: Sequence[Effect], measures: Sequence[Measure]) -> Figure:
    """The change of each measure by the number of steps."""
    figure = Figure(figsize=(5.5 * len(measures), 4.5), layout="constrained")
    columns = figure.subplots(1, len(measures))
    for axes, one in zip(columns, measures, strict=True):
        _plot(axes, found, one)
    figure.legend(*columns[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return figure


def _plot(axes: Axes, found: Sequence[Effect], y: Measure, x: Measure | None = None) -> None:
    """A line for each aesthetic, and one for all on top: the change of `y` over that of `x`, or over the steps."""
    names = list(dict.fromkeys(effect.aesthetic for effect in found if effect.aesthetic is not None))
    axes.set_prop_cycle(color=colormaps["turbo"](np.linspace(0.05, 0.95, len(names) + 1)))  # the default has ten
    for name in (*names, None):
        line = [effect for effect in found if effect.aesthetic == name]
        up = [effect.changes[y.column] for effect in line]
        if x is None:
            axes.errorbar([effect.steps for effect in line], _means(up), yerr=_bars(up), **_style(name))
        else:
            right = [effect.changes[x.column] for effect in line]
            axes.errorbar(_means(right), _means(up), xerr=_bars(right), yerr=_bars(up), **_style(name))
    axes.set_xlabel("steps" if x is None else x.axis)
    axes.set_ylabel(y.axis)
    axes.axhline(0, color="gray", linewidth=0.5)
    axes.grid(alpha=0.3)


def _style(name: str | None) -> dict[str, Any]:
    if name is None:
        return {"label": "all", "color": "black", "linewidth": 2.0, "marker": "o", "capsize": 3}
    label = " " + name.replace("$", r"\$")  # "$" starts a formula, and a leading "_" hides the label
    return {"label": label, "linewidth": 0.8, "marker": ".", "alpha": 0.6, "elinewidth": 0.4}


def _means(values: Sequence[Interval]) -> list[float]:
    return [value.mean for value in values]


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    """How far each interval reaches below and above its mean, which may lie outside of a percentile interval."""
    return [
        [max(0.0, value.mean - value.low) for value in values],
        [max(0.0, value.high - value.mean) for value in values],
    ]


def _sheet(folder: Path, rows: Sequence[Row]) -> Image.Image:
    """A row for each aesthetic, each with another prompt; a column for each number of steps; the first seed only."""
    prompts, seed = list(dict.fromkeys(row.prompt for row in rows)), min(row.seed for row in rows)
    names = list(dict.fromkeys(row.aesthetic for row in rows))[:MAX_ROWS]
    steps = sorted({row.steps for row in rows})
    shown = {(row.prompt, row.aesthetic, row.steps): row.image for row in rows if row.seed == seed and row.image}
    chosen = [(prompts[i * len(prompts) // len(names)], name) for i, name in enumerate(names)]
    cells = [[_image(folder, shown.get((prompt, name, step))) for step in steps] for prompt, name in chosen]
    labels = [f"{name}: {prompt}"[:MAX_LETTERS] for prompt, name in chosen]
    return contact_sheet(cells, columns=[steps_label(step) for step in steps], labels=labels)


def _image(folder: Path, name: str | None) -> Image.Image | None:
    path = folder / "pictures" / (name or "none")
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.convert("RGB")
