"""What was found: rows of a table, and JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table of a part.

    facts:  the columns.
    holds:  whether what is promised is so; None where nothing is promised, or nothing was tried.
    series: the samples over time, at most some hundred, for the JSON only.
    """

    part: str
    what: str
    facts: dict[str, Any] = field(default_factory=dict)
    holds: bool | None = None
    series: list[float] = field(default_factory=list)


def table(findings: list[Finding]) -> str:
    """A Markdown table for each part."""
    parts = dict.fromkeys(one.part for one in findings)
    return "\n\n".join(_table(part, [one for one in findings if one.part == part]) for part in parts)


def _table(part: str, findings: list[Finding]) -> str:
    columns = list(dict.fromkeys(name for one in findings for name in one.facts))
    rows = [[part, *columns, "holds"], ["---"] * (len(columns) + 2)]
    for one in findings:
        holds = {True: "yes", False: "**no**", None: ""}[one.holds]
        rows.append([one.what, *(_cell(one.facts.get(column, "")) for column in columns), holds])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def write(path: Path, head: dict[str, Any], findings: list[Finding]) -> None:
    """Everything as JSON."""
    content = {**head, "findings": [asdict(one) for one in findings]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
