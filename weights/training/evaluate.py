"""Measure what the demo model can do, and what personalisation does to it, through the service itself.

    script/serve & python -m weights.training.evaluate

The pictures come over HTTP from running Cog servers. Two classifiers judge them that have nothing to do with the
model's own CLIP: they were trained on true renders alone. What is judged goes into results.csv as it comes, and a run
that was stopped goes on where it was. report.py makes the tables and the plot of it.
"""

import argparse
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import report, results
from .captions import AESTHETICS
from .judge import FOLDER, Judges
from .predictions import DEFAULT_SERVER, PredictionError, model_of, predict, share
from .results import Row

PARTS = ("subjects", "styles", "steps")
STEPS = (0, 1, 2, 3, 5, 10, 20)
SEED = 0  # of the first picture of each prediction


class JudgesLike(Protocol):
    """What is asked of the judges. `prompts` are some of the subjects, `accuracy` is theirs on true renders."""

    @property
    def styles(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def subjects(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def prompts(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def captions(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def style_phrases(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def accuracy(self) -> Mapping[str, float]: ...  # noqa: D102

    def style_probabilities(self, pictures: Tensor, /) -> Tensor:
        """[N, styles] from uint8 [N, 3, H, W]."""

    def subject_scores(self, pictures: Tensor, /) -> Tensor:
        """[N, subjects] from uint8 [N, 3, H, W]."""


class ResumeError(Exception):
    """What is in the folder was made otherwise; the message says how."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to draw, alike in a whole run."""

    outputs: int = 4  # pictures of each prompt, with seeds from SEED on; a subject gets one
    inference_steps: int = 20  # denoising steps
    scheduler: str = "DPMSolverMultistep"
    size: int | None = None  # pixels, width and height; None: the service's own default
    subjects: int = 200  # how many subjects are drawn, and told apart

    @property
    def inputs(self) -> dict[str, Any]:
        """What every prediction is asked for alike, as the API takes it."""
        drawn = {"num_inference_steps": self.inference_steps, "scheduler": self.scheduler}
        return drawn if self.size is None else drawn | {"width": self.size, "height": self.size}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One prediction, and what its pictures are to be judged against."""

    part: str
    subject: str
    prompt: str
    outputs: int
    styles: tuple[str, ...] = ()  # the judge is asked for these; () asks for the subject alone
    aesthetic: str | None = None
    steps: int = 0

    @property
    def keys(self) -> set[tuple[str, str, str, int]]:
        """The keys of the rows that it makes; there are `outputs` rows of each."""
        return {(self.part, self.subject, style, self.steps) for style in self.styles or ("",)}


def plan(judges: JudgesLike, settings: Settings) -> Iterator[Job]:
    """All that is drawn: each subject plainly; each prompt in each style's words; each prompt with each aesthetic."""
    for subject in judges.subjects[: settings.subjects]:
        yield Job(part="subjects", subject=subject, prompt=judges.captions[subject], outputs=1)
    for subject in judges.prompts:
        for style in judges.styles:
            words = ", ".join(filter(None, (judges.captions[subject], judges.style_phrases[style])))
            yield Job(part="styles", subject=subject, prompt=words, outputs=settings.outputs, styles=(style,))
    for subject in judges.prompts:
        yield from _steps(subject, judges, settings)


def _steps(subject: str, judges: JudgesLike, settings: Settings) -> Iterator[Job]:
    """At 0 steps an aesthetic makes no difference: those pictures are drawn once, and compared to all of them."""
    alike: dict[str, Any] = {
        "part": "steps",
        "subject": subject,
        "prompt": judges.captions[subject],
        "outputs": settings.outputs,
    }
    aesthetics = tuple(style for style in judges.styles if style in AESTHETICS)
    yield Job(**alike, styles=aesthetics)
    for aesthetic in aesthetics:
        for steps in STEPS[1:]:
            yield Job(**alike, styles=(aesthetic,), aesthetic=aesthetic, steps=steps)


def inputs(job: Job, settings: Settings) -> dict[str, Any]:
    """The prediction of a job, as the API takes it. The learning rate is left to its default."""
    drawn: dict[str, Any] = {
        "prompt": job.prompt,
        "aesthetic_steps": job.steps,
        "num_outputs": job.outputs,
        "seed": SEED,
        **settings.inputs,
    }
    if job.aesthetic is not None:
        drawn["aesthetic_embedding"] = job.aesthetic
    return drawn


@dataclass(frozen=True)
class Examiner:
    """Draws jobs and has them judged. Servers draw side by side; the judges are asked by one thread at a time."""

    judges: JudgesLike
    settings: Settings
    lock: threading.Lock = field(default_factory=threading.Lock)

    def examine(self, server: str, job: Job) -> tuple[str, list[Row]]:
        """The model that drew a job's pictures, and their rows. Raises PredictionError if any picture is missing."""
        pictures = predict(server, inputs(job, self.settings))
        if len(pictures) != job.outputs:
            raise PredictionError(f"{server}: {len(pictures)} pictures of {job.prompt!r} came, not {job.outputs}")
        with self.lock, torch.inference_mode():
            return model_of(pictures[0]), self.judge(job, _stack(pictures))

    def judge(self, job: Job, pictures: Tensor) -> list[Row]:
        """The rows of a job's pictures, uint8 [outputs, 3, H, W]: of each style that is asked for, a row each."""
        known = [self.is_known(job.subject, scores) for scores in self.judges.subject_scores(pictures)]
        probabilities = self.judges.style_probabilities(pictures) if job.styles else None
        rows = []
        for style in job.styles or ("",):
            for i in range(job.outputs):
                probability, is_top = None, None
                if probabilities is not None:
                    index = self.judges.styles.index(style)
                    probability = round(float(probabilities[i, index]), 6)
                    is_top = int(probabilities[i].argmax()) == index
                rows.append(
                    Row(
                        part=job.part,
                        subject=job.subject,
                        style=style,
                        steps=job.steps,
                        seed=SEED + i,
                        style_probability=probability,
                        style_top1=is_top,
                        subject_top5=known[i],
                    )
                )
        return rows

    def is_known(self, subject: str, scores: Tensor) -> bool:
        """Whether a subject is among the five likeliest of those told apart: the first ones, and all of the prompts."""
        names = self.judges.subjects
        among = sorted(set(range(self.settings.subjects)) | {names.index(prompt) for prompt in self.judges.prompts})
        among = [index for index in among if index < len(names)]
        five = scores[among].topk(min(5, len(among))).indices.tolist()
        return names.index(subject) in {among[i] for i in five}


def evaluate(
    judges: JudgesLike, servers: list[str], out: Path, settings: Settings, parts: tuple[str, ...] = PARTS
) -> None:
    """Draw and judge whatever of `parts` is not in `out` yet. Raises PredictionError and ResumeError."""
    out.mkdir(parents=True, exist_ok=True)
    run = _begin(out / "run.json", judges, settings)
    jobs = list(plan(judges, settings))
    done = _done(out / "results.csv", jobs)
    todo = [job for job in jobs if job.part in parts and job not in done]
    total = sum(job.part in parts for job in jobs)
    with tqdm(desc="Predictions", total=total, initial=total - len(todo), unit="job") as bar:
        for _, (model, rows) in share(servers, todo, Examiner(judges, settings).examine):
            _check_model(out / "run.json", run, model)
            results.append(out / "results.csv", rows)
            bar.update()


def _begin(path: Path, judges: JudgesLike, settings: Settings) -> dict[str, Any]:
    """What a run is, written down when it begins, and the same for as long as it goes on."""
    run = {"settings": asdict(settings), "judges": dict(judges.accuracy)}
    if not path.exists():
        path.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        return run
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for part, now in run.items():
        if known[part] != now:
            raise ResumeError(f"{path.parent} was begun with the {part} {known[part]}, not {now}: give another --out")
    return known


def _check_model(path: Path, run: dict[str, Any], model: str) -> None:
    """One run measures one model: the other servers and later sessions must have the one of the first picture."""
    if "model" not in run:
        run["model"] = model
        path.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    if run["model"] != model:
        raise ResumeError(f"{path.parent} was begun with the model {run['model']!r}, and a server has {model!r}")


def _done(path: Path, jobs: list[Job]) -> set[Job]:
    """The jobs that are in the file with all of their rows. Rows of others are taken out of it."""
    rows = results.read(path)
    counts = Counter(row.key for row in rows)
    done = {job for job in jobs if all(counts[key] == job.outputs for key in job.keys)}
    keys = {key for job in done for key in job.keys}
    if path.exists():
        results.rewrite(path, (row for row in rows if row.key in keys))
    return done


def _stack(pictures: list[Image.Image]) -> Tensor:
    """uint8 [N, 3, H, W]."""
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def main(arguments: list[str] | None = None) -> int:
    """Run the evaluation and print its report; returns the exit status."""
    options = _parser().parse_args(arguments)
    settings = Settings(
        outputs=options.outputs,
        inference_steps=options.inference_steps,
        scheduler=options.scheduler,
        size=options.size,
        subjects=options.subjects,
    )
    try:
        judges = Judges.load(options.judges)
        evaluate(judges, options.server or [DEFAULT_SERVER], options.out, settings, tuple(options.parts))
    except (PredictionError, ResumeError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(report.write(options.out))
    return 0


def add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    """Which servers draw, and how: --server, --judges, --inference-steps, --scheduler and --size."""
    flag = parser.add_argument
    flag(
        "--server",
        action="append",
        metavar="URL",
        help=f"a running Cog server; several share the work ({DEFAULT_SERVER})",
    )
    flag("--judges", type=Path, default=FOLDER, metavar="FOLDER", help="the trained judges, who know the words, too")
    flag("--inference-steps", type=int, default=Settings.inference_steps, help="denoising steps")
    flag("--scheduler", default=Settings.scheduler, help="the sampler")
    flag("--size", type=int, metavar="PIXELS", help="width and height; blank: the service's default")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weights.training.evaluate",
        description="Judge what running servers draw; stop and go on freely.",
    )
    add_drawing_flags(parser)
    flag = parser.add_argument
    flag("--out", type=Path, default=Path("outputs/evaluation"), metavar="FOLDER", help="where to write, and to go on")
    flag("--parts", nargs="+", choices=PARTS, default=PARTS, help="draw only some of it")
    flag("--outputs", type=int, default=Settings.outputs, help="pictures of each prompt")
    flag("--subjects", type=int, default=Settings.subjects, help="how many subjects to draw and to tell apart")
    return parser


if __name__ == "__main__":
    sys.exit(main())
