"""What personalisation does, measured: prompts × aesthetics × steps × seeds are drawn, and CLIP looks at each picture.

It is the untouched CLIP of the model that looks, the one that aesthetics are made with. For each picture it says how
close it is to the aesthetic and how close to the prompt: the first should rise with the steps, the second should not
fall. (That the text encoder of the same CLIP was moved towards the aesthetic makes this the measure that the method
has it easiest with.) Where LAION's aesthetic predictor has been downloaded, and that CLIP is the one that it was made
for, it says what score people would give the picture.

A job is a prompt with an aesthetic, at all steps and seeds, or a prompt without one. Whatever has a file under rows/
is done: a run that was stopped goes on there, and processes share the rest (`accelerate launch`; on CPUs `torchrun`).
Everything else in the folder is made of those files at the end.
"""

import fcntl
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from accelerate import PartialState
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .. import settings
from ..embeddings import embedding
from ..embeddings.embedding import Aesthetic
from ..embeddings.registry import Registry
from ..errors import CheckpointError, DrawingError, RequestError
from ..gradient import similarity
from ..images import metadata
from ..models import checkpoint, clip
from ..models.device import default_device
from ..pipeline import prompt
from ..request import Request
from ..service import Service
from ..writing import whole
from . import aesthetic_score, report
from .aesthetic_score import Predictor
from .results import Row, read_rows, write_rows

__all__ = ["Job", "Plan", "prepare", "run"]

log = logging.getLogger(__name__)

MAX_SEEDS = 8  # pictures that one request draws
PATIENCE = timedelta(days=30)  # of a process that has done its share and waits for the others


@dataclass(frozen=True, kw_only=True)
class Job:
    """A prompt, the number that it has in file names, and an aesthetic; None draws without steps."""

    number: int
    prompt: str
    aesthetic: str | None

    @property
    def name(self) -> str:
        """What its files begin with."""
        return f"{self.number:03}" + ("" if self.aesthetic is None else f"-{self.aesthetic}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is to be drawn.

    model:      as `service.locate` takes it.
    aesthetics: by their names in the report, with the inputs that ask for each of them.
    steps:      rising; the first is 0.
    seeds:      how many, from drawing["seed"] on.
    drawing:    the other inputs of every request.
    predictor:  LAION's, which scores the pictures; None where it is not here or knows another CLIP.
    """

    model: str | None
    snapshot: checkpoint.Snapshot
    prompts: tuple[str, ...]
    aesthetics: Mapping[str, tuple[Mapping[str, Any], Aesthetic]]
    steps: tuple[int, ...]
    seeds: int
    drawing: Mapping[str, Any]
    predictor: Predictor | None

    def jobs(self) -> list[Job]:
        """What there is to do; the plain pictures first."""
        numbered = list(enumerate(self.prompts))
        return [Job(number=i, prompt=one, aesthetic=name) for name in (None, *self.aesthetics) for i, one in numbered]

    def request(self, job: Job) -> Request:
        """What a job asks for. Raises RequestError."""
        if job.aesthetic is None:
            return Request(prompt=job.prompt, aesthetic_steps=0, **self.drawing)
        inputs, _ = self.aesthetics[job.aesthetic]
        sweep = ",".join(map(str, self.steps[1:]))
        return Request(prompt=job.prompt, aesthetic_sweep=sweep, **inputs, **self.drawing)

    def settings(self) -> dict[str, Any]:
        """What rows must share to be compared, as JSON has it."""
        is_local = self.snapshot.revision == "local"
        facts = {
            "model": str(self.snapshot.folder.resolve()) if is_local else self.snapshot.name,
            "revision": self.snapshot.revision,
            "device": default_device().type,
            "speed": settings.speed(default_device().type),
            "prompts": self.prompts,
            "aesthetics": {name: aesthetic.sha256 for name, (_, aesthetic) in self.aesthetics.items()},
            "steps": self.steps,
            "seeds": self.seeds,
            **self.drawing,
        }
        if self.predictor is not None:
            facts["predictor"] = self.predictor.sha256
        found: dict[str, Any] = json.loads(json.dumps(facts))
        return found


def prepare(
    *,
    model: str | None,
    prompts: Sequence[str],
    aesthetics: Mapping[str, Mapping[str, Any]] | None,
    steps: Sequence[int],
    seeds: int,
    drawing: Mapping[str, Any],
) -> Plan:
    """The plan of an evaluation, checked before any model is loaded. Arguments as in `Plan`.

    aesthetics: None takes all named ones that are here and fit the model.

    Raises RequestError, EmbeddingError or CheckpointError for whatever could not be drawn.
    """
    rising = tuple(sorted(set(steps)))
    if len(rising) < 2 or rising[0] != 0:
        raise RequestError(f"--steps takes 0, which the others are compared with, and others, not {brief(steps)}")
    if not 1 <= seeds <= MAX_SEEDS:
        raise RequestError(f"--seeds must be 1 to {MAX_SEEDS}, not {seeds}")
    Request(num_outputs=seeds, **drawing)  # which raises if the last seed is too large
    snapshot = checkpoint.locate(model)
    clip_space, dim = clip.read_clip_space(snapshot)
    plan = Plan(
        model=model,
        snapshot=snapshot,
        prompts=tuple(dict.fromkeys(prompts)),
        aesthetics=_fitting(clip_space, dim, aesthetics),
        steps=rising,
        seeds=seeds,
        drawing=drawing,
        predictor=_predictor(dim) if clip_space == snapshot.clip_space else None,
    )
    for job in plan.jobs():
        plan.request(job)
    return plan


def run(plan: Plan, folder: Path) -> Path | None:
    """Draw and measure what is not yet in `folder`; returns the report, in the process that wrote it.

    Raises RequestError if the folder holds anything else, or rows of other settings, and CheckpointError if the model
    can't look at pictures.
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
            report.write(folder, rows, plan.settings())
    state.destroy_process_group()
    return folder / "report.md" if state.is_main_process else None


def _draw(plan: Plan, folder: Path, state: PartialState) -> None:
    """This process's share of what is not done yet; returns once all processes have done theirs."""
    jobs = [job for job in plan.jobs() if not _is_done(plan, folder, job)]
    state.wait_for_everyone()  # all have the same list before the first adds a row
    mine = jobs[state.process_index :: state.num_processes]
    if mine:
        service = Service.load(plan.model)
        with tqdm(total=len(plan.jobs()), desc="Evaluating", unit=" jobs", disable=not state.is_main_process) as bar:
            for job in mine:
                bar.update(_count(folder) - bar.n)
                write_rows(_done(folder, job), _work(service, plan, job, folder / "pictures"))
            bar.update(_count(folder) - bar.n)
    state.wait_for_everyone()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises RequestError while another evaluation is at work in the folder: both would draw the same pictures."""
    with (folder / "rows" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which ends with the process, however that ends
        except BlockingIOError as error:
            raise RequestError(f"another evaluation is at work in {folder}: wait for it, or name another") from error
        yield


def _fitting(
    clip_space: str, dim: int, wanted: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, tuple[Mapping[str, Any], Aesthetic]]:
    """The aesthetics that were asked for, or all there are, if a model of that CLIP space can follow them."""
    registry = Registry()
    if wanted is None:
        here = [name for name in registry.names(clip_space) if registry.path(name).is_file()]
        wanted = {name: {"aesthetic_embedding": name} for name in here}
        if not here:
            raise RequestError(f"no named aesthetic of the model's CLIP space {clip_space} is here: give --aesthetics")
    found = {}
    for name, inputs in wanted.items():
        if "aesthetic_embedding_file" in inputs:
            aesthetic = embedding.load_aesthetic(inputs["aesthetic_embedding_file"])
        else:
            aesthetic = registry.load(name, clip_space)
        embedding.require_fit(aesthetic, clip_space=clip_space, dim=dim)
        found[name] = (inputs, aesthetic)
    return found


def _predictor(dim: int) -> Predictor | None:
    """LAION's predictor, where it has been downloaded, for a CLIP of `dim` dimensions."""
    path = aesthetic_score.locate(settings.home() / "weights")
    return None if path is None else aesthetic_score.load_predictor(path, dim)


def _begin(plan: Plan, folder: Path) -> Plan:
    """Make `folder`, or see that what is in it belongs to this plan; returns the plan as it goes on there.

    A folder that was begun without the predictor goes on without it.
    """
    path = folder / "settings.json"
    if path.is_file():
        begun = _read(path)
        if plan.predictor is not None and "predictor" not in begun:
            log.info("%s was begun without LAION's predictor and goes on so: name another --outdir for scores", folder)
            plan = replace(plan, predictor=None)
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
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)
    except (ValueError, TypeError) as error:
        raise RequestError(
            f"{path} is damaged, and no longer says what the rows are of: name another --outdir"
        ) from error


def _require_same(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    changed = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if changed:
        before, now = (brief(settings.get(changed[0])) for settings in (old, new))
        raise RequestError(
            f"{folder} was begun with other settings ({changed[0]} {before}, now {now}): their rows can't be compared; "
            "name another --outdir"
        )


def _done(folder: Path, job: Job) -> Path:
    """The file that says that a job is done."""
    return folder / "rows" / f"{job.name}.csv"


def _is_done(plan: Plan, folder: Path, job: Job) -> bool:
    """Whether the rows of a job are there, all of them: a disk that was full may have cut them short."""
    wanted = len(plan.aesthetics) if job.aesthetic is None else len(plan.steps) - 1
    try:
        return len(read_rows(_done(folder, job))) == wanted * plan.seeds
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return False


def _count(folder: Path) -> int:
    """Jobs that are done, by whichever process."""
    return len(list((folder / "rows").glob("[!.]*.csv")))


def _work(service: Service, plan: Plan, job: Job, pictures: Path) -> Iterator[Row]:
    """Draw a job's pictures, write them, and look at each."""
    seen: dict[tuple[int, int], tuple[str, Tensor]] = {}
    try:
        for steps, batch in service.draw_batches(plan.request(job), plan.seeds):
            for image, recipe in batch:
                seed = recipe.request["seed"]
                name = f"{job.name}-{steps:03}-{seed}.png"
                metadata.write(pictures / name, image, recipe)
                seen[steps, seed] = (name, _features(service, image))
    except DrawingError as error:  # one job that gives nothing need not stop the others
        log.warning("%s: %s", job.name, error)
    words = prompt.embed(
        service.model, prompt.tokenize_prompt(service.model.pipeline.tokenizer, job.prompt, service.model.device)
    ).cpu()
    for label in plan.aesthetics if job.aesthetic is None else [job.aesthetic]:
        _, aesthetic = plan.aesthetics[label]
        for steps in plan.steps[:1] if job.aesthetic is None else plan.steps[1:]:
            for seed in range(plan.drawing["seed"], plan.drawing["seed"] + plan.seeds):
                picture, features = seen.get((steps, seed), ("", None))
                yield Row(
                    prompt=job.prompt,
                    aesthetic=label,
                    steps=steps,
                    seed=seed,
                    similarity_to_aesthetic=_cosine(features, aesthetic.vector),
                    similarity_to_prompt=_cosine(features, words),
                    picture=picture,
                    score=_score(plan.predictor, features),
                )


def _features(service: Service, image: Image.Image) -> Tensor:
    """The raw CLIP features [1, D] of a picture, on the CPU."""
    vision = service.model.vision
    if vision is None:
        name = service.model.snapshot.name
        raise CheckpointError(f"{name} has no vision tower (image_encoder) to look at pictures with")
    return vision.features([vision.prepare(image)]).cpu()


def _score(scoring: Predictor | None, features: Tensor | None) -> float | None:
    """Of features [1, D]; nan without a picture, None without a predictor."""
    if scoring is None:
        return None
    return float("nan") if features is None else scoring.score(features)


def _cosine(features: Tensor | None, direction: Tensor) -> float:
    """Of features [1, D] and a direction [1, D] of unit norm; nan without a picture."""
    return float("nan") if features is None else similarity(features, direction).item()
