"""The rows of results.csv: what the judges said of each picture. evaluate.py appends them, report.py reads them."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

__all__ = ["Row", "append", "read", "rewrite"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture, judged against one style. At 0 steps it has a row for each aesthetic."""

    part: str  # subjects, styles or steps
    subject: str  # what the prompt names
    style: str  # what the prompt or the aesthetic asks for; blank: none
    steps: int  # towards the aesthetic
    seed: int
    style_probability: float | None  # of that style, 0 to 1; None: none was asked for
    style_top1: bool | None  # whether the judge holds that style for the likeliest
    subject_top5: bool  # whether the subject is among the five likeliest

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What was asked for, but for the seed."""
        return self.part, self.subject, self.style, self.steps


NAMES = [spec.name for spec in fields(Row)]


def read(path: Path) -> list[Row]:
    """The rows of a file; none if there is no such file. A last line that was cut short is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [_row(cells) for cells in csv.DictReader(lines)]


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to the end of a file, which is begun with the names of its columns."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([NAMES] if is_new else [])
        writer.writerows(astuple(row) for row in rows)


def rewrite(path: Path, rows: Iterable[Row]) -> None:
    """Put a file with these rows in the place of the one that is there."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    append(new, list(rows))
    new.replace(path)


def _row(cells: dict[str, str]) -> Row:
    return Row(
        part=cells["part"],
        subject=cells["subject"],
        style=cells["style"],
        steps=int(cells["steps"]),
        seed=int(cells["seed"]),
        style_probability=float(cells["style_probability"]) if cells["style_probability"] else None,
        style_top1=cells["style_top1"] == "True" if cells["style_top1"] else None,
        subject_top5=cells["subject_top5"] == "True",
    )
