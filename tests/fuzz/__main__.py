"""Try hostile inputs on the service, each in a process with limits of memory and time, and report.

    python -m tests.fuzz --inputs 10000
    python -m tests.fuzz --seconds 20 --kinds pickles zips
    python -m tests.fuzz --replay FILE

An input may be drawn from, or refused with an AestheticError that names it. Whatever else happens is a fault: another
exception, a crash, 10 seconds of computing, 1 GiB of memory, a file written elsewhere, a connection, a program. Its
input is kept as a file, made smaller, and the run ends with 1. Inputs that reach new lines are changed further. The
same seed makes the same inputs.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from aesthetic.embeddings.registry import Registry
from aesthetic.models import checkpoint, loading
from aesthetic.service import Service
from aesthetic.settings import silence_libraries
from tests import snapshot

from . import archives, images, pickles, texts, weights
from .child import NO_END, Outcome, Runner
from .kind import Bench, Kind
from .mutation import MAX_BYTES
from .shrink import shrink

KINDS = {kind.name: kind for module in (pickles, weights, archives, images, texts) for kind in module.KINDS}


@dataclass(kw_only=True)
class Row:
    """What came of the inputs of a kind."""

    kind: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    faults: int = 0
    seconds: float = 0.0  # of the slowest
    mib: float = 0.0  # of the largest
    lines: int = 0  # of the watched code that ran
    kept: dict[str, str] = field(default_factory=dict)  # a file for each different fault


class Trial:
    """The inputs of one kind: seeds, and what they become."""

    def __init__(self, kind: Kind, bench: Bench, runner: Runner, seed: int, keep: Path) -> None:
        self.row = Row(kind=kind.name)
        self._kind, self._runner, self._keep = kind, runner, keep
        self._random = Random(f"{seed} {kind.name}")
        self._fresh = kind.seeds(bench)
        self._pool: list[bytes] = []
        self._lines: set[str] = set()

    def next(self) -> None:
        """Try another input."""
        is_fresh = self._fresh and (not self._pool or self._random.random() < 0.5)
        data = self._fresh.pop() if is_fresh else self._mutated()
        outcome = self._runner(self._kind, data, self._lines)
        if outcome.fault == NO_END:  # the machine may have been held up
            outcome = self._runner(self._kind, data)
        if outcome.lines - self._lines or not self._pool:
            self._pool.append(data)
            self._lines |= outcome.lines
        self._count(outcome)
        if outcome.fault and outcome.fault not in self.row.kept:
            self.row.kept[outcome.fault] = str(self._kept(data, outcome))

    def _mutated(self) -> bytes:
        return self._kind.mutate(self._random, self._random.choice(self._pool))[:MAX_BYTES]

    def _count(self, outcome: Outcome) -> None:
        row = self.row
        row.inputs += 1
        row.faults += bool(outcome.fault)
        row.refused += not outcome.fault and bool(outcome.refusal)
        row.accepted += not outcome.fault and not outcome.refusal
        row.seconds, row.mib = max(row.seconds, outcome.seconds), max(row.mib, outcome.mib)
        row.lines = len(self._lines)

    def _kept(self, data: bytes, outcome: Outcome) -> Path:
        """The file of an input at fault, smaller if a smaller one has the same fault, with a note beside it."""
        smaller = shrink(data, lambda less: self._runner(self._kind, less).fault == outcome.fault)
        path = self._keep / f"{self._kind.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        self._keep.mkdir(parents=True, exist_ok=True)
        path.write_bytes(smaller)
        note = f"{outcome.fault}\n{outcome.refusal}\n\n{outcome.detail}\n"
        path.with_suffix(".txt").write_text(note, encoding="utf-8")
        tqdm.write(f"{self._kind.name}: {outcome.fault}: {path} ({len(data):,} bytes, {len(smaller):,} once shrunk)")
        return path


def main() -> None:
    """Try inputs until there were enough, and end with 1 if one was at fault."""
    options = _options()
    with _runner(options.seed) as (bench, runner):
        if options.replay:
            sys.exit(_replayed(options.replay, runner))
        trials = [Trial(KINDS[name], bench, runner, options.seed, options.keep) for name in options.kinds]
        for trial in tqdm(_turns(trials, options), desc="Fuzzing", unit=" inputs", total=options.inputs):
            trial.next()
    rows = [trial.row for trial in trials]
    print(_table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    sys.exit(any(row.faults for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m tests.fuzz", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, help="how many, of all kinds in turn (default: 10000)")
    parser.add_argument("--seconds", type=float, help="how long, in place of how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--keep", type=Path, default=Path(".cog/fuzz"), help="folder for inputs at fault (.cog/fuzz)")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--replay", type=Path, help="run one kept file again")
    options = parser.parse_args()
    if options.inputs is None and options.seconds is None:
        options.inputs = 10_000
    return options


@contextmanager
def _runner(seed: int) -> Iterator[tuple[Bench, Runner]]:
    """A tiny model, and what runs inputs on it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    silence_libraries()
    torch.set_num_threads(1)  # a fork has only the thread that forked
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        home = snapshot.write_home(Path(folder) / "home")
        model = loading.load(checkpoint.locate(None, home / "weights"), torch.device("cpu"))
        bench = Bench(home=home, service=Service(model, Registry(home / "embeddings")))
        yield bench, Runner(bench, Path(folder) / "tried")


def _turns(trials: list[Trial], options: argparse.Namespace) -> Iterator[Trial]:
    """The kinds in turn, until there were enough inputs or the time is over."""
    began = time.monotonic()
    for trial in itertools.islice(itertools.cycle(trials), options.inputs):
        if options.seconds is not None and time.monotonic() - began > options.seconds:
            return
        yield trial


def _replayed(path: Path, runner: Runner) -> bool:
    """Print what comes of a kept file. Whether it is at fault."""
    outcome = runner(KINDS[re.sub("-[0-9a-f]+$", "", path.name)], path.read_bytes())
    print(outcome.fault or outcome.refusal or "accepted", outcome.detail, sep="\n")
    print(f"{outcome.seconds:.2f} s, {outcome.mib:.0f} MiB")
    return bool(outcome.fault)


def _table(rows: list[Row]) -> str:
    """The rows, and their sum, as Markdown."""
    total = Row(kind="all", lines=0)
    for row in rows:
        for name in ("inputs", "accepted", "refused", "faults"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        total.seconds, total.mib = max(total.seconds, row.seconds), max(total.mib, row.mib)
    head = (
        "| kind | inputs | accepted | refused | faults | slowest, CPU s | most MiB |\n|---|---|---|---|---|---|---|\n"
    )
    lines = [
        f"| {row.kind} | {row.inputs:,} | {row.accepted:,} | {row.refused:,} | {row.faults} "
        f"| {row.seconds:.1f} | {row.mib:,.0f} |"
        for row in [*rows, total]
    ]
    kept = [f"{row.kind}: {fault}: {path}" for row in rows for fault, path in row.kept.items()]
    return head + "\n".join([*lines, *kept])


if __name__ == "__main__":
    main()
