"""What the demo model can draw, and what personalization does to it: aesthetic/evaluation with the trained judges.

    python -m weights.training.evaluate --outdir outputs/demo

The two classifiers of judge.py score the images. They were trained on true renders alone and know nothing of the
model's own CLIP. words.md has the images drawn from words alone; report.md has those drawn with aesthetics.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from aesthetic.cli.cluster import add_cluster, cluster
from aesthetic.cli.main import exit_status
from aesthetic.embeddings.embedding import Aesthetic
from aesthetic.evaluation import evaluate
from aesthetic.evaluation.judges import Judge
from aesthetic.evaluation.results import Measure
from aesthetic.models.loading import Model
from aesthetic.request import Request
from aesthetic.service import Service

from .captions import AESTHETICS
from .follow import RATE, STEPS
from .judge import FOLDER, Judges

__all__ = ["DRAWING", "add_drawing_flags", "look", "main", "trained_judge", "words"]

DRAWING = {
    "num_inference_steps": 20,
    "scheduler": "DPMSolverMultistep",
    "width": 512,
    "height": 512,
    "guidance_scale": 7.5,
    "aesthetic_lr": RATE,
}
MEASURES = (
    Measure(
        column="style_probability",
        title="probability of the style",
        change="gained",
        axis="gained probability of the aesthetic's style",
    ),
    Measure(
        column="subject_top5",
        title="subject recognized",
        change="lost",
        axis="share of images that lost their subject",
        is_loss=True,
    ),
)
EXPLANATION = (
    "Two classifiers judge the images, which were trained on true renders alone. *Gained* and *lost* are against the "
    "image of 0 steps, of the same prompt and seed. The subject counts as recognized (1, else 0) if it is among the "
    "five likeliest."
)


def trained_judge(judges: Judges) -> Judge:
    """The probability of the aesthetic's style, and 1 if the subject of the plain prompt is recognized."""
    settings = {"judges": dict(judges.accuracy)}  # on renders held out of their training
    return Judge(measures=MEASURES, explanation=EXPLANATION, settings=settings, score=partial(_score, judges))


def look(judges: Judges, images: Sequence[Image.Image], text: str) -> tuple[Tensor, list[bool]]:
    """The style probabilities [N, styles] of images, and whether each shows the subject of its plain prompt."""
    [subject] = [i for i, label in enumerate(judges.subjects) if judges.captions[label] == text]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    five = judges.subject_scores(pixels).topk(5).indices
    return judges.style_probabilities(pixels), (five == subject).any(1).tolist()


def _score(
    judges: Judges, model: Model, image: Image.Image, text: str, aesthetics: Mapping[str, Aesthetic]
) -> Mapping[str, Sequence[float]]:
    styles, [is_known] = look(judges, [image], text)
    return {name: [styles[0, judges.styles.index(name)].item(), float(is_known)] for name in aesthetics}


def words(service: Service, judges: Judges, drawing: Mapping[str, Any], seeds: int) -> str:
    """Markdown: how often each subject, and each style asked for in words, is recognized without an aesthetic."""
    return f"{_subjects(service, judges, drawing)}\n\n{_styles(service, judges, drawing, seeds)}\n"


def _subjects(service: Service, judges: Judges, drawing: Mapping[str, Any]) -> str:
    missed = []
    for label, text in judges.captions.items():
        _, [is_known] = look(judges, _draw(service, text, drawing, 1), text)
        if not is_known:
            missed.append(label)
    count = len(judges.captions)
    low, high = stats.binomtest(count - len(missed), count).proportion_ci(method="wilson")
    share = f"{count - len(missed)} of {count} images (95 % interval {low:.1%} to {high:.1%})"
    return f"Subjects recognized in {share}. Not recognized: {', '.join(missed) or '-'}."


def _styles(service: Service, judges: Judges, drawing: Mapping[str, Any], seeds: int) -> str:
    lines = ["| style | images | likeliest | subject recognized |", "|---|---:|---:|---:|"]
    for i, style in enumerate(judges.styles):
        tops, subjects = [], []
        for label in judges.prompts:
            text = judges.captions[label]
            phrase = ", ".join(filter(None, (text, judges.style_phrases[style])))
            styles, known = look(judges, _draw(service, phrase, drawing, seeds), text)
            tops += (styles.argmax(1) == i).tolist()
            subjects += known
        lines.append(f"| {style} | {len(tops)} | {np.mean(tops):.1%} | {np.mean(subjects):.1%} |")
    return "\n".join(lines)


def _draw(service: Service, prompt: str, drawing: Mapping[str, Any], count: int) -> list[Image.Image]:
    request = Request(prompt=prompt, aesthetic_steps=0, num_outputs=count, **drawing)
    return [image for image, _ in service.draw(request).images]


def main(arguments: list[str] | None = None) -> int:
    """Run the evaluation; returns the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status("evaluate", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    judges = Judges.load(options.judges)
    drawing = {name: getattr(options, name) for name in ("seed", *DRAWING)}
    plan = evaluate.prepare(
        model="demo",
        prompts=[judges.captions[label] for label in judges.prompts],
        aesthetics={name: {"aesthetic_embedding": name} for name in AESTHETICS},
        steps=STEPS,
        seeds=options.seeds,
        drawing=drawing,
        judge=trained_judge(judges),
    )
    evaluate.run(plan, options.outdir, cluster(options))
    path = options.outdir / "words.md"
    if not path.is_file():
        path.write_text(words(Service.load("demo"), judges, drawing, options.seeds), encoding="utf-8")


def add_drawing_flags(parser: argparse.ArgumentParser, *, seed: int) -> None:
    """How to draw, and whose styles and words: --judges, --seed, and the names of DRAWING."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--judges", type=Path, default=FOLDER, metavar="FOLDER", help="the trained judges")
    parser.add_argument("--seed", type=int, default=seed, help="of the first image of each prompt")
    for name, value in DRAWING.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="as in the API")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weights.training.evaluate", description="Judge what the demo model draws; resumes if stopped."
    )
    add_drawing_flags(parser, seed=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs/demo"), help="where to write, and to resume")
    parser.add_argument("--seeds", type=int, default=4, help="images of each prompt, 1 to 8; a subject gets one")
    add_cluster(parser)
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(main())
