"""An evaluation for people: report.md with tables, plots, and a sheet of pictures, all in its folder.

matplotlib draws the plots; it is in requirements-evaluate.txt, and nothing else here needs it.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..images.sheet import contact_sheet, steps_label
from .results import Effect, Interval, Row, effects

__all__ = ["write"]

COLUMNS = ("steps", "to the aesthetic", "gain", "to the prompt", "loss")
SCORES = ("LAION score", "rise")
PANELS: tuple[tuple[str, str, Callable[[Effect], Any]], ...] = (
    ("Closer to the aesthetic", "cosine", lambda one: one.gain),
    ("Farther from the prompt", "cosine", lambda one: one.loss),
    ("Liked more, says LAION's predictor", "score", lambda one: one.rise),
)
MAX_ROWS = 12  # of the sheet
MAX_LETTERS = 40  # of a prompt beside a row

logging.getLogger("matplotlib").setLevel(logging.WARNING)


def write(folder: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Write report.md, tradeoff.png, steps.png and sheet.png to `folder`.

    rows:     of the whole evaluation.
    settings: of evaluation.Plan.settings.
    """
    found = effects(rows)
    _tradeoff(found).savefig(folder / "tradeoff.png", dpi=150)
    _by_steps(found).savefig(folder / "steps.png", dpi=150)
    _sheet(folder, rows).save(folder / "sheet.png")
    (folder / "report.md").write_text(_text(found, rows, settings), encoding="utf-8")


def _text(found: Sequence[Effect], rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    lost = sum(not row.picture for row in rows)
    names = list(settings["aesthetics"])
    parts = [
        "# What aesthetic gradients do",
        f"{settings['model']} (revision {settings['revision']}): {len(settings['prompts'])} prompts × {len(names)} "
        f"aesthetics × {len(settings['steps'])} numbers of steps × {settings['seeds']} seeds, "
        f"{settings['width']} × {settings['height']} pixels, {settings['num_inference_steps']} denoising steps with "
        f"{settings['scheduler']}, guidance {settings['guidance_scale']}, aesthetic_lr {settings['aesthetic_lr']}.",
        "Cosine similarities by the model's untouched CLIP. *Gain* is how much closer to the aesthetic a picture is "
        "than the one of 0 steps, of the same prompt and seed; *loss* is how much farther from the prompt. Means over "
        "prompts, with 95 % bootstrap intervals that resample prompts: they say what other prompts of this kind would "
        "give, not other aesthetics.",
    ]
    if _is_scored(found):
        parts.append(
            "*LAION score* is what people would give a picture, from 1 to 10, by LAION's aesthetic predictor, which "
            "sees it through the same CLIP and knows neither aesthetic nor prompt; *rise* is its change from 0 steps."
        )
    if lost:
        parts.append(f"{lost} of {len(rows)} rows have no picture (kept back by the safety checker, or overflowed).")
    parts += ["## All aesthetics", _table([one for one in found if one.aesthetic is None])]
    parts += ["![Gain against loss](tradeoff.png)", "![Gain and loss by steps](steps.png)", "![Pictures](sheet.png)"]
    for name in names:
        parts += [f"## {_plain(name)}", _table([one for one in found if one.aesthetic == name])]
    return "\n\n".join(parts) + "\n"


def _table(found: Sequence[Effect]) -> str:
    columns = (*COLUMNS, *(SCORES if _is_scored(found) else ()), "rows")
    lines = [columns, ["---:"] * len(columns)]
    for one in found:
        is_plain = one.steps == 0  # which is what the others are compared with
        gain, loss = ("", "") if is_plain else (_signed(one.gain), _signed(one.loss))
        means = f"{one.to_aesthetic.mean:.4f}", f"{one.to_prompt.mean:.4f}"
        scores = [f"{one.score.mean:.4f}", "" if is_plain else _signed(one.rise)] if one.score and one.rise else []
        lines.append([str(one.steps), means[0], gain, means[1], loss, *scores, str(one.rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_scored(found: Sequence[Effect]) -> bool:
    return any(one.score is not None for one in found)


def _signed(value: Interval) -> str:
    if math.isnan(value.low):
        return f"{value.mean:+.4f}"
    return f"{value.mean:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def _plain(name: str) -> str:
    """A file's name, in which Markdown finds nothing."""
    return "".join(letter if letter.isalnum() or letter in "-_ ." else "?" for letter in name)


def _tradeoff(found: Sequence[Effect]) -> Figure:
    """Gain against loss: up is good, right is bad; a point for each number of steps."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes, ways = figure.subplots(), _ways(found)
    _color(axes, len(ways))
    for name, way in ways.items():
        x, y = [one.loss for one in way], [one.gain for one in way]
        axes.errorbar(_means(x), _means(y), xerr=_bars(x), yerr=_bars(y), **_style(name))
        if name is None:
            for one in (one for one in way if one.rows):
                axes.annotate(f" {one.steps}", (one.loss.mean, one.gain.mean), va="bottom", weight="bold")
    axes.set_xlabel("loss of similarity to the prompt")
    axes.set_ylabel("gain in similarity to the aesthetic")
    axes.set_title("What is gained for what is lost, by steps")
    _finish(axes)
    _explain(figure, axes)
    return figure


def _by_steps(found: Sequence[Effect]) -> Figure:
    """Gain, loss and, if there are scores, their rise, each by the number of steps."""
    panels = PANELS if _is_scored(found) else PANELS[:2]
    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    columns, ways = figure.subplots(1, len(panels)), _ways(found)
    for axes, (title, unit, change) in zip(columns, panels, strict=True):
        _color(axes, len(ways))
        for name, way in ways.items():
            values = [change(one) for one in way]
            axes.errorbar([one.steps for one in way], _means(values), yerr=_bars(values), **_style(name))
        axes.set_title(title)
        axes.set_xlabel("steps")
        axes.set_ylabel(f"change of the {unit}")
        _finish(axes)
    _explain(figure, columns[0])
    return figure


def _ways(found: Sequence[Effect]) -> dict[str | None, list[Effect]]:
    """The effects of each aesthetic, by steps; of all together last, to be drawn on top."""
    ways: dict[str | None, list[Effect]] = {}
    for one in found:
        ways.setdefault(one.aesthetic, []).append(one)
    return {**{name: way for name, way in ways.items() if name is not None}, None: ways[None]}


def _style(name: str | None) -> dict[str, Any]:
    if name is None:
        return {"label": "all", "color": "black", "linewidth": 2.0, "marker": "o", "capsize": 3}
    label = " " + name.replace("$", r"\$")  # a dollar would begin a formula, a leading underscore hide the name
    return {"label": label, "linewidth": 0.8, "marker": ".", "alpha": 0.6, "elinewidth": 0.4}


def _means(values: Sequence[Interval]) -> list[float]:
    return [value.mean for value in values]


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    """How far each interval reaches below and above its mean, which a percentile interval need not hold."""
    return [
        [max(0.0, value.mean - value.low) for value in values],
        [max(0.0, value.high - value.mean) for value in values],
    ]


def _color(axes: Axes, count: int) -> None:
    """As many colours as there are ways: matplotlib's own begin again after ten."""
    axes.set_prop_cycle(color=colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def _explain(figure: Figure, axes: Axes) -> None:
    """A legend that covers nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")


def _finish(axes: Axes) -> None:
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.grid(alpha=0.3)


def _sheet(folder: Path, rows: Sequence[Row]) -> Image.Image:
    """A row for each aesthetic, each with another prompt, and a column for each number of steps; the first seed."""
    prompts, seed = list(dict.fromkeys(row.prompt for row in rows)), min(row.seed for row in rows)
    names = list(dict.fromkeys(row.aesthetic for row in rows))[:MAX_ROWS]
    steps = sorted({row.steps for row in rows})
    shown = {(row.prompt, row.aesthetic, row.steps): row.picture for row in rows if row.seed == seed and row.picture}
    cells, labels = [], []
    for i, name in enumerate(names):
        prompt = prompts[i * len(prompts) // len(names)]
        cells.append([_picture(folder, shown.get((prompt, name, step))) for step in steps])
        labels.append(f"{name}: {prompt}"[:MAX_LETTERS])
    return contact_sheet(cells, columns=[steps_label(step) for step in steps], labels=labels)


def _picture(folder: Path, name: str | None) -> Image.Image | None:
    path = folder / "pictures" / (name or "none")
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.convert("RGB")
