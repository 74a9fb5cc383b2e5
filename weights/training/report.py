"""The tables and the plot of an evaluation: `python -m weights.training.report FOLDER` makes them of results.csv.

Pictures of one prompt are alike, so that the intervals of personalisation are over prompts: each prompt counts with the
mean of its pictures. Everything is in per cent, and differences are in points.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from . import results
from .results import Row

__all__ = ["Mean", "draw", "render", "wilson", "write"]

Z = 1.96  # standard deviations; 95 %
SUBJECTS, STYLES = 80, 90  # per cent that are asked for
GAIN, LOST = 40, 20  # points: of style to be gained at least, of subjects to be lost at most

Measure = Callable[[Row], float]


@dataclass(frozen=True)
class Mean:
    """A mean with half the width of its 95 % interval, which one prompt alone has not (nan). Nothing has no mean."""

    value: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of independent values, by the normal distribution."""
        half = Z * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values) if values else math.nan, half)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.1f}" + ("" if math.isnan(self.half) else f" ± {self.half:.1f}")


def style(row: Row) -> float:
    """How likely the judge holds the style that was asked for, in per cent."""
    assert row.style_probability is not None
    return 100 * row.style_probability


def kept(row: Row) -> float:
    """100 if the subject is recognised, else 0."""
    return 100.0 * row.subject_top5


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, 0 to 1, after Wilson (1927): sound close to 0 and 1 too."""
    share, square = hits / count, Z * Z / count
    half = Z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return (share + square / 2 - half) / (1 + square), (share + square / 2 + half) / (1 + square)


def by_prompt(rows: Iterable[Row], measure: Measure) -> dict[str, float]:
    """The mean of a measure over the pictures of each prompt."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.subject, []).append(measure(row))
    return {subject: statistics.fmean(values) for subject, values in groups.items()}


def change(before: Iterable[Row], after: Iterable[Row], measure: Measure) -> Mean:
    """The mean difference, prompt by prompt, over the prompts and aesthetics that both have."""
    before, after = list(before), list(after)
    shared = {(row.subject, row.style) for row in before} & {(row.subject, row.style) for row in after}
    was, now = (
        by_prompt((row for row in rows if (row.subject, row.style) in shared), measure) for rows in (before, after)
    )
    return Mean.of([now[subject] - was[subject] for subject in was])


def write(folder: Path) -> str:
    """Write report.md and steps.png beside results.csv, and return the text of the report."""
    rows, run = results.read(folder / "results.csv"), {}
    if (folder / "run.json").exists():
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    text = render(rows, run)
    (folder / "report.md").write_text(text, encoding="utf-8")
    if steps := _part(rows, "steps"):
        draw(steps, folder / "steps.png")
    return text


def render(rows: Sequence[Row], run: Mapping[str, Any]) -> str:
    """The report as Markdown; a part that has no rows is left out."""
    sections = ["# What the demo model draws", _conditions(run)]
    for part, section in (("subjects", _subjects), ("styles", _styles), ("steps", _personalisation)):
        if found := _part(rows, part):
            sections.append(section(found))
    return "\n\n".join(filter(None, sections)) + "\n"


def _part(rows: Iterable[Row], part: str) -> list[Row]:
    return [row for row in rows if row.part == part]


def _conditions(run: Mapping[str, Any]) -> str:
    """How it was drawn, and how far the judges can be trusted."""
    lines = [f"Model: {run['model']}."] if run.get("model") else []
    if settings := {name: value for name, value in run.get("settings", {}).items() if value is not None}:
        lines.append("Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + ".")
    if accuracy := run.get("judges"):
        table = _table(["judge", "%"], [[name, f"{100 * value:.1f}"] for name, value in accuracy.items()])
        lines.append("The judges' accuracy on true renders held out of their training:\n\n" + table)
    return "\n\n".join(lines)


def _subjects(rows: list[Row]) -> str:
    hits = sum(row.subject_top5 for row in rows)
    low, high = wilson(hits, len(rows))
    share = 100 * hits / len(rows)
    missed = sorted({row.subject for row in rows if not row.subject_top5})
    return (
        "## Subjects, prompted plainly\n\n"
        f"Among the judge's five likeliest in {hits} of {len(rows)} pictures: {share:.1f} % "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f}). "
        f"At least {SUBJECTS} % are asked for: {'met' if share >= SUBJECTS else 'NOT met'}."
        + (f"\n\nNot recognised: {', '.join(missed)}." if missed else "")
    )


def _styles(rows: list[Row]) -> str:
    def cells(name: str, some: list[Row]) -> list[str]:
        return [name, str(len(some)), f"{_top1(some):.1f}", _mean(some, style), _mean(some, kept)]

    names = _ordered(row.style for row in rows)
    reached = [name for name in names if _top1(_of(rows, name)) >= STYLES]
    table = _table(
        ["style", "pictures", "likeliest %", "mean probability %", "subject kept %"],
        [cells(name, _of(rows, name)) for name in names] + [cells("**all**", rows)],
    )
    return (
        f"## Styles, asked for in words\n\n{table}\n\n"
        f"The likeliest in at least {STYLES} % of pictures: {len(reached)} of {len(names)} styles."
    )


def _personalisation(rows: list[Row]) -> str:
    stops, names = sorted({row.steps for row in rows}), _ordered(row.style for row in rows)
    parts = [
        "## Personalisation",
        f"{len({row.subject for row in rows})} prompts × {len(names)} aesthetics, ± 95 % over prompts. "
        "Gained and lost are against 0 steps.",
        _table(["steps", "style %", "gained", "subject kept %", "lost"], [_stop(rows, steps) for steps in stops]),
        _recommendation(rows, stops),
        "Probability of the style, %, by steps:",
        _grid(rows, names, stops, style),
        "Subject kept, %, by steps:",
        _grid(rows, names, stops, kept),
    ]
    return "\n\n".join(filter(None, parts))


def _stop(rows: list[Row], steps: int) -> list[str]:
    before, after = _at(rows, 0), _at(rows, steps)
    cells = [str(steps), _mean(after, style), "", _mean(after, kept), ""]
    if steps and before:
        lost = change(after, before, kept)
        cells[2], cells[4] = str(change(before, after, style)), str(lost)
    return cells


def _recommendation(rows: list[Row], stops: list[int]) -> str:
    before = _at(rows, 0)
    if not before:
        return ""
    good = [
        str(steps)
        for steps in stops
        if change(before, _at(rows, steps), style).value >= GAIN
        and change(_at(rows, steps), before, kept).value <= LOST
    ]
    found = ", ".join(good) or "no number of"
    return f"At least {GAIN} points of style gained and at most {LOST} of subjects lost: {found} steps."


def _grid(rows: list[Row], names: list[str], stops: list[int], measure: Measure) -> str:
    lines = []
    for name in names:
        cells = [_at(_of(rows, name), steps) for steps in stops]
        lines.append([name, *(f"{statistics.fmean(map(measure, some)):.1f}" if some else "" for some in cells)])
    return _table(["aesthetic", *map(str, stops)], lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plot style against subject kept, a point for each number of steps: thin for an aesthetic, bold for the mean."""
    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    stops = sorted({row.steps for row in rows})
    for i, name in enumerate(_ordered(row.style for row in rows)):
        points = [_point(some) for steps in stops if (some := _at(_of(rows, name), steps))]
        axes.plot(*_lines(points), ".-", color=f"C{i}" if i < 10 else "navy", linewidth=1, alpha=0.6, label=name)
    points = [_point(_at(rows, steps)) for steps in stops]
    axes.errorbar(
        *_lines(points),
        xerr=[_bar(x) for x, _ in points],
        yerr=[_bar(y) for _, y in points],
        fmt="o-",
        color="black",
        linewidth=3,
        elinewidth=1.5,
        capsize=3,
        label="mean ± 95 %,\nat so many steps",
    )
    for steps, (x, y) in zip(stops, points, strict=True):
        axes.annotate(
            str(steps), (x.value, y.value), (8, 8), textcoords="offset points", fontsize=14, fontweight="bold", zorder=9
        )
    axes.set_title("Style against subject, by steps of personalisation", fontsize=14)
    axes.set_xlabel("subject recognised among the five likeliest (% of pictures)", fontsize=12)
    axes.set_ylabel("probability of the aesthetic's style (%)", fontsize=12)
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=11, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _point(rows: list[Row]) -> tuple[Mean, Mean]:
    return _over_prompts(rows, kept), _over_prompts(rows, style)


def _lines(points: list[tuple[Mean, Mean]]) -> tuple[list[float], list[float]]:
    return [x.value for x, _ in points], [y.value for _, y in points]


def _bar(mean: Mean) -> float:
    return 0.0 if math.isnan(mean.half) else mean.half


def _over_prompts(rows: Iterable[Row], measure: Measure) -> Mean:
    return Mean.of(list(by_prompt(rows, measure).values()))


def _mean(rows: Iterable[Row], measure: Measure) -> str:
    return str(_over_prompts(rows, measure))


def _top1(rows: list[Row]) -> float:
    return 100 * statistics.fmean(bool(row.style_top1) for row in rows)


def _of(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if row.style == name]


def _at(rows: Iterable[Row], steps: int) -> list[Row]:
    return [row for row in rows if row.steps == steps]


def _ordered(names: Iterable[str]) -> list[str]:
    """Each name once. Servers finish in any order, and the report should not depend on it."""
    return sorted(set(names))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown: the first column to the left, the others, which are numbers, to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Make the report of a folder again and print it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m weights.training.report", description="Make report.md and steps.png."
    )
    parser.add_argument("folder", type=Path, help="where evaluate has written results.csv")
    folder = parser.parse_args(arguments).folder
    if not (folder / "results.csv").is_file():
        print(f"report: there is no {folder / 'results.csv'}", file=sys.stderr)
        return 1
    print(write(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
