"""Measures what personalization does: draws prompts × aesthetics × steps × seeds, and has a judge score each image.

The default judge is the model's untouched CLIP, with which aesthetics are made: closeness to the aesthetic should rise
with the steps, and closeness to the prompt should not fall. (This flatters the method, since personalization moves the
text encoder of the same CLIP.)

A job is a prompt with an aesthetic, at all steps and seeds, or a prompt without one. A job is done once it has a file
under rows/: a stopped run resumes there, and several processes share the rest (`accelerate launch`; on CPUs
`torchrun`). Everything else in the folder is made from those files at the end.
"""

import fcntl
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from .. import settings
from ..embeddings.embedding import Aesthetic
from ..embeddings.registry import Registry
from ..embeddings.resolve import resolve
from ..errors import DrawingError, RequestError
from ..images import metadata
from ..models import checkpoint, clip
from ..models.device import default_device
from ..request import Request
from ..service import Service
from ..writing import whole
from . import aesthetic_score, report
from .judges import Judge, clip_judge
from .results import Row, read_rows, write_rows

__all__ = ["Job", "Plan", "prepare", "run"]

log = logging.getLogger(__name__)

MAX_SEEDS = 8  # images that one request draws
PATIENCE = timedelta(days=30)  # how long a process that has done its share waits for the others


@dataclass(frozen=True, kw_only=True)
class Job:
    """A prompt, its number in file names, and an aesthetic; None draws without steps."""

    number: int
    prompt: str
    aesthetic: str | None

    @property
    def name(self) -> str:
        """The prefix of its files."""
        return f"{self.number:03}" + ("" if self.aesthetic is None else f"-{self.aesthetic}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything to draw.

    model:      as `checkpoint.locate` takes it.
    aesthetics: by their names in the report, each with the inputs that request it.
    steps:      rising; the first is 0.
    seeds:      how many, from drawing["seed"] on.
    drawing:    the other inputs of every request.
    judge:      what scores the images.
    """

    model: str | None
    snapshot: checkpoint.Snapshot
    prompts: tuple[str, ...]
    aesthetics: Mapping[str, tuple[Mapping[str, Any], Aesthetic]]
    steps: tuple[int, ...]
    seeds: int
    drawing: Mapping[str, Any]
    judge: Judge

    def jobs(self) -> list[Job]:
        """All jobs, those without an aesthetic first."""
        numbered = list(enumerate(self.prompts))
        return [Job(number=i, prompt=one, aesthetic=name) for name in (None, *self.aesthetics) for i, one in numbered]

    def request(self, job: Job) -> Request:
        """The request of a job. Raises RequestError."""
        if job.aesthetic is None:
            return Request(prompt=job.prompt, aesthetic_steps=0, **self.drawing)
        inputs, _ = self.aesthetics[job.aesthetic]
        sweep = ",".join(map(str, self.steps[1:]))
        return Request(prompt=job.prompt, aesthetic_sweep=sweep, **inputs, **self.drawing)

    def settings(self) -> dict[str, Any]:
        """What rows must share to be compared, as JSON types."""
        facts = {
            "model": self.snapshot.reference,
            "revision": self.snapshot.revision,
            "device": default_device().type,
            "speed": settings.speed(default_device().type),
            "prompts": self.prompts,
            "aesthetics": {name: aesthetic.sha256 for name, (_, aesthetic) in self.aesthetics.items()},
            "steps": self.steps,
            "seeds": self.seeds,
            **self.drawing,
            **self.judge.settings,
        }
        return dict(json.loads(json.dumps(facts)))


def prepare(
    *,
    model: str | None,
    prompts: Sequence[str],
    aesthetics: Mapping[str, Mapping[str, Any]] | None,
    steps: Sequence[int],
    seeds: int,
    drawing: Mapping[str, Any],
    judge: Judge | None = None,
) -> Plan:
    """The plan of an evaluation, checked before any model is loaded. Arguments as in `Plan`.

    aesthetics: the inputs that request each; None takes all named ones that are present and fit the model.
    judge:      None takes the model's CLIP, with LAION's predictor if it is present and fits.

    Raises RequestError, EmbeddingError or CheckpointError for anything that can't be drawn.
    """
    rising = tuple(sorted(set(steps)))
    if len(rising) < 2 or rising[0] != 0:
        raise RequestError(f"--steps takes 0, which the others are compared with, and others, not {brief(steps)}")
    if not 1 <= seeds <= MAX_SEEDS:
        raise RequestError(f"--seeds must be 1 to {MAX_SEEDS}, not {seeds}")
    Request(num_outputs=seeds, **drawing)  # which raises if the last seed is too large
    snapshot = checkpoint.locate(model)
    clip_space, dim = clip.read_clip_space(snapshot)
    head = aesthetic_score.locate(settings.home() / "weights") if clip_space == snapshot.clip_space else None
    plan = Plan(
        model=model,
        snapshot=snapshot,
        prompts=tuple(dict.fromkeys(prompts)),
        aesthetics=_fitting(clip_space, dim, aesthetics),
        steps=rising,
        seeds=seeds,
        drawing=drawing,
        judge=judge or clip_judge(aesthetic_score.load_predictor(head, dim) if head else None),
    )
    for job in plan.jobs():
        plan.request(job)
    return plan


def run(plan: Plan, folder: Path) -> Path | None:
    """Draw and score what is not yet in `folder`; returns the report's path in the process that wrote it, else None.

    Raises RequestError if the folder holds anything else, or rows of other settings, and CheckpointError if the
    default judge finds no vision tower.
    """
    on_cpu = default_device().type == "cpu"
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)  # which also makes each process's GPU its current one
    with state.main_process_first():
        plan = _begin(plan, folder)
    with _alone(folder) if state.is_main_process else nullcontext():
        _draw(plan, folder, state)
        if state.is_main_process:
            rows = [row for job in plan.jobs() for row in read_rows(_done(folder, job))]
            write_rows(folder / "results.csv", rows)
            report.write(folder, rows, plan.settings(), plan.judge)
    state.destroy_process_group()
    return folder / "report.md" if state.is_main_process else None


def _draw(plan: Plan, folder: Path, state: PartialState) -> None:
    """Do this process's share of the jobs left; returns once all processes have done theirs."""
    jobs = [job for job in plan.jobs() if not _is_done(plan, folder, job)]
    state.wait_for_everyone()  # all must have made the same list before the first one adds rows
    mine = jobs[state.process_index :: state.num_processes]
    if mine:
        service = Service.load(plan.model)
        with tqdm(total=len(plan.jobs()), desc="Evaluating", unit=" jobs", disable=not state.is_main_process) as bar:
            for job in mine:
                write_rows(_done(folder, job), _work(service, plan, job, folder / "pictures"))
                bar.update(len(list((folder / "rows").glob("[!.]*.csv"))) - bar.n)  # by all processes
    state.wait_for_everyone()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises RequestError while another evaluation has it: both would draw the same images."""
    with (folder / "rows" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, in whatever way
        except BlockingIOError as error:
            raise RequestError(f"another evaluation is at work in {folder}: wait for it, or name another") from error
        yield


def _fitting(
    clip_space: str, dim: int, wanted: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, tuple[Mapping[str, Any], Aesthetic]]:
    """The aesthetics that were asked for, or all that are present; raises if one does not fit that CLIP space."""
    registry = Registry()
    if wanted is None:
        wanted = {name: {"aesthetic_embedding": name} for name in registry.present(clip_space)}
        if not wanted:
            raise RequestError(f"no named aesthetic of the model's CLIP space {clip_space} is here: give --aesthetics")
    found = {}
    for name, inputs in wanted.items():
        file = inputs.get("aesthetic_embedding_file")
        found[name] = (inputs, resolve(registry, name=name, file=file, clip_space=clip_space, dim=dim))
    return found


def _begin(plan: Plan, folder: Path) -> Plan:
    """Make `folder`, or check that its contents belong to this plan; returns the plan to go on with.

    A folder that was begun without LAION's predictor continues without it.
    """
    path = folder / "settings.json"
    if path.is_file():
        begun = _read(path)
        if "predictor" in plan.judge.settings and "predictor" not in begun:
            log.info(
                "%s was begun without LAION's predictor and continues without it: name another --outdir for scores",
                folder,
            )
            plan = replace(plan, judge=clip_judge(None))
        _require_same(begun, plan.settings(), folder)
    elif folder.exists() and any(folder.iterdir()):
        raise RequestError(f"--outdir {folder} holds something else: name a new folder")
    for name in ("rows", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with whole(path) as unfinished:
            unfinished.write_text(json.dumps(plan.settings(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return plan


def _read(path: Path) -> dict[str, Any]:
    """The settings that a folder was begun with."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RequestError(f"{path} is damaged, so the rows' settings are unknown: name another --outdir") from error


def _require_same(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    changed = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if changed:
        before, now = (brief(one.get(changed[0])) for one in (old, new))
        raise RequestError(
            f"{folder} was begun with other settings ({changed[0]} {before}, now {now}): their rows can't be compared; "
            "name another --outdir"
        )


def _done(folder: Path, job: Job) -> Path:
    """The file that marks a job as done."""
    return folder / "rows" / f"{job.name}.csv"


def _is_done(plan: Plan, folder: Path, job: Job) -> bool:
    """Whether all rows of a job are there: a full disk may have cut the file short."""
    wanted = len(plan.aesthetics) if job.aesthetic is None else len(plan.steps) - 1
    try:
        return len(read_rows(_done(folder, job))) == wanted * plan.seeds
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return False


def _work(service: Service, plan: Plan, job: Job, folder: Path) -> Iterator[Row]:
    """Draw a job's images, write them to `folder`, and have each scored."""
    aesthetics = {name: one for name, (_, one) in plan.aesthetics.items() if job.aesthetic in (None, name)}
    seen: dict[tuple[int, int], tuple[str, Mapping[str, Sequence[float]]]] = {}
    try:
        for steps, batch in service.draw_batches(plan.request(job), plan.seeds):
            for image, recipe in batch:
                seed = recipe.request["seed"]
                name = f"{job.name}-{steps:03}-{seed}.png"
                metadata.write(folder / name, image, recipe)
                seen[steps, seed] = (name, plan.judge.score(service.model, image, job.prompt, aesthetics))
    except DrawingError as error:  # the other jobs may still succeed
        log.warning("%s: %s", job.name, error)
    columns = [measure.column for measure in plan.judge.measures]
    missing = ("", dict.fromkeys(aesthetics, [math.nan] * len(columns)))
    stops = plan.steps[:1] if job.aesthetic is None else plan.steps[1:]
    seeds = range(plan.drawing["seed"], plan.drawing["seed"] + plan.seeds)
    for label, steps, seed in product(aesthetics, stops, seeds):
        name, numbers = seen.get((steps, seed), missing)
        scores = dict(zip(columns, numbers[label], strict=True))
        yield Row(prompt=job.prompt, aesthetic=label, steps=steps, seed=seed, image=name, numbers=scores)
