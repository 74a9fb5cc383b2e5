"""Measures what personalization does: draws prompts × aesthetics × steps × seeds, and has a judge score each image.

The default judge is the model's untouched CLIP, with which aesthetics are made: closeness to the aesthetic should rise
with the steps, and closeness to the prompt should not fall. (This flatters the method, since personalization moves the
text encoder of the same CLIP.)

A job is a prompt with an aesthetic, at all steps and seeds, or a prompt without one. The workers of `cluster` draw and
judge the images of a job, this process writes them. A job is done once it has a file under rows/: a stopped run resumes
there. Everything else in the folder is made from those files at the end.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from .. import settings
from ..embeddings.embedding import Aesthetic
from ..embeddings.registry import Registry
from ..embeddings.resolve import resolve
from ..errors import DrawingError, RequestError
from ..images import metadata
from ..images.metadata import Recipe
from ..models import checkpoint, clip
from ..models.device import default_device
from ..request import Request
from ..service import Service
from ..writing import alone, whole
from . import aesthetic_score, report
from .judges import Judge, clip_judge
from .results import Row, read_rows, write_rows

if TYPE_CHECKING:
    from ..cluster.workers import Cluster

__all__ = ["Job", "Plan", "prepare", "run"]

log = logging.getLogger(__name__)

MAX_SEEDS = 8  # images that one request draws


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

    snapshot:   the model.
    aesthetics: by their names in the report, each with the inputs that request it.
    steps:      rising; the first is 0.
    seeds:      how many, from drawing["seed"] on.
    drawing:    the other inputs of every request.
    judge:      what scores the images.
    """

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


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """What a worker returns of a job: its rows, and its images as files by their names."""

    rows: Sequence[Row]
    images: Mapping[str, bytes]


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

    model:      as `checkpoint.locate` takes it.
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


def run(plan: Plan, folder: Path, cluster: "Cluster") -> Path:
    """Draw and score what is not yet in `folder` on a cluster; returns the report's path.

    Raises RequestError if the folder holds anything else, or rows of other settings, or while another evaluation is at
    work there, DrawingError if workers die of a job, and SettingError if they can't load the model or score.
    """
    plan = _begin(plan, folder)
    with alone(folder / "rows" / "lock"):
        _draw(plan, folder, cluster)
        rows = [row for job in plan.jobs() for row in read_rows(_done(folder, job))]
        write_rows(folder / "results.csv", rows)
        report.write(folder, rows, plan.settings(), plan.judge)
    return folder / "report.md"


def _draw(plan: Plan, folder: Path, cluster: "Cluster") -> None:
    """Have the jobs left done, and write their images and rows."""
    jobs = plan.jobs()
    left = [job for job in jobs if not _is_done(plan, folder, job)]
    if not left:
        return
    from ..cluster import workers  # a finished evaluation needs no Ray

    done = workers.work(partial(_work, plan), left, model=plan.snapshot, cluster=cluster)
    with tqdm(done, desc="Evaluating", unit=" jobs", total=len(jobs), initial=len(jobs) - len(left)) as bar:
        for job, scored in bar:
            if isinstance(scored, DrawingError):
                raise DrawingError(f"{job.name}: {scored}")
            for name, data in scored.images.items():
                with whole(folder / "pictures" / name) as unfinished:
                    unfinished.write_bytes(data)
            write_rows(_done(folder, job), scored.rows)


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


def _work(plan: Plan, service: Service, job: Job) -> _Scored:
    """Draw a job's images, and have each scored."""
    drawn: dict[tuple[int, int], tuple[Image.Image, Recipe]] = {}
    try:
        for steps, batch in service.draw_batches(plan.request(job), plan.seeds):
            drawn |= {(steps, recipe.request["seed"]): (image, recipe) for image, recipe in batch}
    except DrawingError as error:  # the other jobs may still succeed
        log.warning("%s: %s", job.name, error)
    names = {key: f"{job.name}-{key[0]:03}-{key[1]}.png" for key in drawn}
    return _Scored(
        rows=_judged(plan, service, job, {key: (names[key], image) for key, (image, _) in drawn.items()}),
        images={names[key]: metadata.encode(image, recipe) for key, (image, recipe) in drawn.items()},
    )


def _judged(
    plan: Plan, service: Service, job: Job, drawn: Mapping[tuple[int, int], tuple[str, Image.Image]]
) -> list[Row]:
    """The rows of a job, given its images and their names by steps and seed."""
    aesthetics = {name: one for name, (_, one) in plan.aesthetics.items() if job.aesthetic in (None, name)}
    columns = [measure.column for measure in plan.judge.measures]
    seen: dict[tuple[int, int], tuple[str, Mapping[str, Sequence[float]]]] = {
        key: (name, plan.judge.score(service.model, image, job.prompt, aesthetics))
        for key, (name, image) in drawn.items()
    }
    missing = ("", dict.fromkeys(aesthetics, [math.nan] * len(columns)))
    stops = plan.steps[:1] if job.aesthetic is None else plan.steps[1:]
    seeds = range(plan.drawing["seed"], plan.drawing["seed"] + plan.seeds)
    rows = []
    for label, steps, seed in product(aesthetics, stops, seeds):
        name, numbers = seen.get((steps, seed), missing)
        scores = dict(zip(columns, numbers[label], strict=True))
        rows.append(Row(prompt=job.prompt, aesthetic=label, steps=steps, seed=seed, image=name, numbers=scores))
    return rows
