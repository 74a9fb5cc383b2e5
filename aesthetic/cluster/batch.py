"""Draws a file of requests with any number of workers, and resumes where it was stopped.

Each line of the file is the input of a prediction as JSON, with an `id` if it shall have one. In the output folder,

    images/ID/output.0.png   are its images,
    rows/ID.json             is what became of it, written by the worker after the images,
    results.jsonl            has all rows in the order of the lines, written at the end.

A line is done once it has its row, if that was drawn from the same line with the same model. Lines that were refused
are tried again: their files may be there by then.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from ..errors import DrawingError, SettingError
from ..models import checkpoint
from ..service import Service
from ..writing import alone
from .files import Folder
from .lines import Line
from .prediction import Prediction, predict
from .workers import Cluster, work

__all__ = ["Row", "Summary", "run"]

READERS = 64  # rows that are read at once


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of a line, as in results.jsonl. status: succeeded or failed, as Cog says it."""

    id: str
    status: str
    error: str | None
    outputs: Sequence[str]
    seed: int | None
    metrics: Mapping[str, Any]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of a run: rows by status, images in all and by this run, and its seconds."""

    succeeded: int
    failed: int
    images: int
    drawn: int
    seconds: float


def run(
    lines: Sequence[Line], requests: Folder, out: Folder, *, model: checkpoint.Snapshot, cluster: Cluster
) -> Summary:
    """Draw what is not done, and write results.jsonl, also if it is stopped.

    requests: where the files are that lines name.

    Raises RequestError while another batch is at work in `out`, and what `work` raises.
    """
    with alone(out.local / ".lock") if out.local else nullcontext():
        rows = {line.id: _failed(line, line.error) for line in lines if line.error is not None}
        rows |= _done(out, lines)
        todo = [line for line in lines if line.id not in rows]
        start, before = time.monotonic(), len(rows)
        try:
            if todo:
                drawn = work(partial(_draw, requests, out), todo, model=model, cluster=cluster)
                for line, outcome in _shown(drawn, len(todo)):
                    rows[line.id] = _failed(line, str(outcome)) if isinstance(outcome, DrawingError) else outcome
        finally:
            found = [rows[line.id] for line in lines if line.id in rows]
            out.write("results.jsonl", "".join(json.dumps(asdict(row)) + "\n" for row in found).encode())
    images = [len(row.outputs) for row in rows.values()]
    succeeded = sum(row.status == "succeeded" for row in found)
    return Summary(
        succeeded=succeeded,
        failed=len(found) - succeeded,
        images=sum(images),
        drawn=sum(images[before:]),
        seconds=time.monotonic() - start,
    )


def _shown(drawn: Iterator[tuple[Line, Row | DrawingError]], count: int) -> Iterator[tuple[Line, Row | DrawingError]]:
    """`drawn`, with a progress bar that says how many images a second there are."""
    images = 0
    with tqdm(total=count, desc="Drawing", unit=" requests") as bar:
        for line, outcome in drawn:
            images += 0 if isinstance(outcome, DrawingError) else len(outcome.outputs)
            bar.set_postfix_str(f"{images / max(bar.format_dict['elapsed'], 1e-9):.2f} images/s", refresh=False)
            bar.update()
            yield line, outcome


def _done(out: Folder, lines: Sequence[Line]) -> dict[str, Row]:
    """The rows that are there and are those of these lines."""
    names = set(out.names("rows"))
    begun = [line for line in lines if f"{line.id}.json" in names]
    with ThreadPoolExecutor(READERS) as threads:
        found = threads.map(partial(_row, out), begun)
        return {row.id: row for row in tqdm(found, desc="Reading rows", total=len(begun)) if row is not None}


def _row(out: Folder, line: Line) -> Row | None:
    """The row of a line, if it has one that was drawn from it."""
    with suppress(FileNotFoundError, ValueError, TypeError):  # a full disk may have cut it short
        row = Row(**json.loads(out.read(f"rows/{line.id}.json")))
        return row if row.digest == line.digest else None
    return None


def _draw(requests: Folder, out: Folder, service: Service, line: Line) -> Row:
    """Draw a line in a worker, unless another worker has before it died. Raises SettingError for a full disk."""
    try:
        return _row(out, line) or _drawn(requests, out, service, line)
    except OSError as error:
        raise SettingError(f"{out.place} can't be written to ({error}); the same command continues there") from error


def _drawn(requests: Folder, out: Folder, service: Service, line: Line) -> Row:
    assert line.inputs is not None
    name = f"rows/{line.id}.json"
    with suppress(FileNotFoundError):
        out.remove(name)  # of another line, whose images these replace
        for image in out.names(f"images/{line.id}"):
            out.remove(f"images/{line.id}/{image}")
    prediction = predict(service, line.inputs, requests.open)
    for image, data in prediction.images.items():
        out.write(f"images/{line.id}/{image}", data)
    row = _finished(line, prediction)
    if prediction.is_final:
        out.write(name, json.dumps(asdict(row)).encode())
    return row


def _finished(line: Line, prediction: Prediction) -> Row:
    if prediction.error is not None:
        return _failed(line, prediction.error)
    return Row(
        id=line.id,
        status="succeeded",
        error=None,
        outputs=[f"images/{line.id}/{name}" for name in prediction.images],
        seed=prediction.metrics["seed"],
        metrics=prediction.metrics,
        digest=line.digest,
    )


def _failed(line: Line, error: str) -> Row:
    return Row(id=line.id, status="failed", error=error, outputs=[], seed=None, metrics={}, digest=line.digest)
