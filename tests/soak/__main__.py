"""The service for hours: memory, cancels, faults, two users.

    python -m tests.soak [--minutes 90] [--seed 0] [--predictions 1000] [--cancels 500] [--parts predictions faults ...]

starts Cog's own server on 127.0.0.1 again and again: with the demo model on a CPU, on a GPU with random weights in
Stable Diffusion's full size (3.9 GB in a temporary folder). It ends after the given counts or minutes, whichever
comes first, prints a table, and exits with 1 if something that must hold does not. The table names what there was no
time for.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from tests import snapshot
from tests.serving import started
from tests.soak import faults, two_servers
from tests.soak.cancels import Cancels
from tests.soak.client import Client
from tests.soak.inputs import LARGE, SMALL, Inputs
from tests.soak.predictions import Predictions
from tests.soak.report import Finding, table, write
from tests.soak.scene import PART as FAULTS
from tests.soak.scene import Scene

PARTS = {"predictions": 5, "cancels": 4, "faults": 3, "two_servers": 1}  # their shares of the minutes


# glibc then gives freed memory back at once. By default it keeps gaps for later, more and more for some hundred
# predictions, which would hide a small leak, or look like one.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
FEW = {"aesthetic_steps": 2, "num_inference_steps": 4}


class Load(Protocol):
    """What is done to one server again and again."""

    name: str

    def step(self) -> None:
        """Do it once more."""

    def findings(self) -> list[Finding]:
        """What has been found so far."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the parts share. folder: for the files of this run; home: AESTHETIC_HOME; model: the folder of the model."""

    options: argparse.Namespace
    folder: Path
    home: Path
    model: Path
    deadline: float

    @property
    def is_fast(self) -> bool:
        """Whether it draws large images in a second."""
        return self.model.name != "demo" and torch.cuda.is_available()

    @property
    def most(self) -> dict[str, int]:
        """The greatest values of inputs."""
        return LARGE if self.is_fast else SMALL

    @property
    def fixed(self) -> dict[str, Any]:
        """The inputs of the prediction whose bytes must not change."""
        side = 512 if self.is_fast else 128
        return {"prompt": "a cat", "seed": 1, "width": side, "height": side, **FEW}

    def dice(self, part: str) -> random.Random:
        """A part's own, so that it does the same whatever other parts run."""
        return random.Random(f"{self.options.seed} {part}")

    def end(self, part: str) -> float:
        """When a part that begins now has had its share of the time that is left."""
        later = [name for name in PARTS if name in self.options.parts]
        shares = [PARTS[name] for name in later[later.index(part) :]]
        return time.monotonic() + max(self.deadline - time.monotonic(), 0) * shares[0] / sum(shares)


def main() -> None:
    """Run the parts, print the table, exit."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # with all servers
    begun, findings = time.monotonic(), list[Finding]()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # for the second user
        run = _prepare(options, Path(folder), begun + 60 * options.minutes)
        try:
            for part in (_loads, _faults, _two_servers):
                findings.extend(part(run))
        finally:  # even of a run that breaks off
            minutes = round((time.monotonic() - begun) / 60, 1)
            head = {"options": vars(options) | {"json": None}, "machine": _machine(), "minutes": minutes}
            print(f"{json.dumps(head)}\n\n{table(findings)}")
            if options.json:
                write(options.json, head, findings)
    sys.exit(any(one.holds is False for one in findings))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=90, help="when nothing new is begun (90)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--predictions", type=int, default=1000, metavar="COUNT")
    parser.add_argument("--cancels", type=int, default=500, metavar="COUNT")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--model", choices=["demo", *snapshot.SIZES], help="full on a GPU, else demo")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {gpu}, torch {torch.__version__}, Python {platform.python_version()}"


def _prepare(options: argparse.Namespace, folder: Path, deadline: float) -> Run:
    """Write the model, which all servers then load."""
    home, size = folder / "home", options.model or ("full" if torch.cuda.is_available() else "demo")
    if size == "demo":
        for name in ("weights/manifest.json", "weights/demo", "embeddings"):
            _copy(snapshot.ROOT / name, home / name)
        model = home / "weights" / "demo"
    else:
        model = snapshot.write_home(home, size=size) / "weights" / snapshot.MODEL
    os.environ |= {"AESTHETIC_HOME": str(home), "AESTHETIC_MODEL": model.name}
    return Run(options=options, folder=folder, home=home, model=model, deadline=deadline)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def _loads(run: Run) -> Iterator[Finding]:
    """Predictions and cancels, on one server."""
    if not {"predictions", "cancels"} & set(run.options.parts):
        return
    folders = [run.folder / "tmp", run.folder / "user"]
    for folder in folders:
        folder.mkdir()
    with started(variables={"TMPDIR": str(folders[0]), "HOME": str(folders[1]), **MALLOC}) as server:
        if "predictions" in run.options.parts:
            inputs = Inputs(run.dice("predictions"), run.home, run.model, run.most)
            client = Client(server.address, run.fixed)
            yield from _repeat(run, Predictions(client, inputs, server, [run.home, *folders]), run.options.predictions)
        if "cancels" in run.options.parts:
            client = Client(server.address, run.fixed)
            yield from _repeat(run, Cancels(client, run.dice("cancels"), run.most), run.options.cancels)


def _repeat(run: Run, load: Load, count: int) -> list[Finding]:
    end = run.end(load.name)
    try:
        for _ in tqdm(range(count), desc=load.name, mininterval=5):
            load.step()
            if time.monotonic() > end:
                break
    except (OSError, AssertionError, ValueError) as error:  # no answer, no image, no JSON
        facts = {"measured": f"{type(error).__name__}: {error}"[:400]}
        return [*load.findings(), Finding(part=load.name, what="broke off", facts=facts, holds=False)]
    return load.findings()


def _faults(run: Run) -> Iterator[Finding]:
    if "faults" not in run.options.parts:
        return
    end, scene = run.end("faults"), None
    for name, fault in tqdm([*faults.faults()], desc="faults"):
        if time.monotonic() > end:
            yield Finding(part=FAULTS, what=name, facts={"client": "not tried: no time was left"})
            continue
        scene = scene or _scene(run)
        yield from fault(scene)


def _scene(run: Run) -> Scene:
    with started() as server:
        expected = Client(server.address, run.fixed).fixed_file()
    slow = {"num_inference_steps": 500, "num_outputs": 4} if run.is_fast else {"num_inference_steps": 100}
    return Scene(home=run.home, fixed=run.fixed, expected=expected, slow=run.fixed | slow)


def _two_servers(run: Run) -> Iterator[Finding]:
    if "two_servers" not in run.options.parts:
        return
    if time.monotonic() > run.deadline:
        yield Finding(part=two_servers.PART, what="not tried: no time was left")
        return
    shared = run.folder / "shared"
    shared.mkdir()
    yield from two_servers.soak(run.fixed, _scene(run).expected, shared)


if __name__ == "__main__":
    main()
