"""`python -m weights.training STAGE ...`: fetch, tokenizer, clip, vae, judge, unet, export, pictures, follow."""

import argparse
import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from . import captions, clip, judge, sources, tokenizer, unet, vae
from .export import export
from .follow import follow
from .library import Library, held_out, plan
from .settings import CLIP, JUDGE, LIBRARY, UNET, VAE, WORK

AESTHETIC_PICTURES = 200  # for each aesthetic
FOLLOW_PICTURES = 40


@cache
def _library() -> Library:
    return Library(sources.read(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def learn_words() -> None:
    """The tokenizer, from all captions."""
    words = (caption for picture in plan(sources.read()) for caption in picture.captions)
    tokenizer.train(words, WORK / "tokenizer")


def write_pictures(folder: Path = WORK / "pictures") -> None:
    """What the aesthetics are made of: renders of subjects seen in training, a folder for each style."""
    library = _some_of_each_style(AESTHETIC_PICTURES)
    for i, (picture, pixels) in enumerate(zip(library.pictures, library.large, strict=True)):
        path = folder / picture.style / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, compress_level=1)


def _some_of_each_style(count: int) -> Library:
    emoji = sources.read()
    out = held_out(emoji)
    singles = [picture for picture in plan(emoji) if picture.is_single and picture.subjects[0] not in out]
    rng = random.Random(LIBRARY.seed)
    chosen = []
    for style in captions.AESTHETICS:
        fit = [picture for picture in singles if picture.style == style]
        chosen += rng.sample(fit, min(count, len(fit)))
    return Library(emoji, torch.device("cpu"), chosen)


def main() -> None:
    """Run the stages that are named, in their order."""
    stages: dict[str, Callable[[], object]] = {
        "fetch": lambda: sources.fetch() and None,
        "tokenizer": learn_words,
        "clip": lambda: clip.train(_library(), options.steps or CLIP.steps),
        "judge": lambda: judge.train(_library(), options.steps or JUDGE.steps),
        "vae": lambda: vae.train(_library(), options.steps or VAE.steps),
        "unet": lambda: unet.train(_library(), options.steps or UNET.steps, options.seconds),
        "export": export,
        "pictures": write_pictures,
        "follow": lambda: follow(_some_of_each_style(FOLLOW_PICTURES)),
    }
    parser = argparse.ArgumentParser(prog="python -m weights.training", description="Make the demo model.")
    parser.add_argument("stages", nargs="+", choices=list(stages), metavar="STAGE", help=", ".join(stages))
    parser.add_argument("--steps", type=int, help="of each training, to try things out")
    parser.add_argument("--seconds", type=float, help="of the UNet's training, in place of its number of steps")
    options = parser.parse_args()
    for name, run in stages.items():
        if name in options.stages:
            start = time.perf_counter()
            facts = run()
            print(f"{name}: {time.perf_counter() - start:.0f} s\n{facts or ''}", flush=True)


if __name__ == "__main__":
    main()
