"""bench: measure how fast images are drawn."""

import argparse
import json
from typing import TYPE_CHECKING

from .. import settings
from ..errors import RequestError
from ..request import Request
from ..writing import whole
from .arguments import add_ckpt, add_input, given_inputs, given_path, require_writable

if TYPE_CHECKING:
    from ..models.loading import Model

__all__ = ["add", "bench"]

# As many tokens as the form's prompt has, ten, also in the vocabulary of random weights, which has these words only.
PROMPT = "the cat the dog the cat the dog"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of bench."""
    flag = parser.add_argument
    flag("--random", choices=["sd15", "sdxl", "tiny"], help="random weights of these shapes, in place of a model")
    flag("--sizes", type=_size, nargs="+", default=[(512, 512)], metavar="WIDTHxHEIGHT", help="pixels")
    flag("--outputs", type=int, nargs="+", default=[1], metavar="COUNT", help="images at once")
    add_input(parser, "num_inference_steps", "--steps")
    add_input(parser, "aesthetic_steps")
    add_input(parser, "scheduler")
    flag("--repeats", type=int, default=5, help="of everything, after a first time that doesn't count")
    flag("--json", type=given_path, metavar="NAME.json", help="file to write all measurements to")
    add_ckpt(parser)


def bench(options: argparse.Namespace) -> None:
    """Measure each stage and the whole of predictions beside plain diffusers with the original's loop."""
    if options.repeats < 1:
        raise RequestError(f"--repeats must be 1 or more, not {options.repeats}")
    requests = _requests(options)
    if options.json is not None:
        require_writable(options.json, ".json", flag="--json")
    from ..benchmark import benchmark
    from ..models.device import default_device

    speed = settings.speed(default_device().type)
    measured = benchmark.run(lambda: _model(options), speed, requests, repeats=options.repeats, say=print)
    if options.json is not None:
        with whole(options.json) as unfinished:
            unfinished.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def _requests(options: argparse.Namespace) -> list[Request]:
    """One for each size and number of images. Raises RequestError."""
    if options.random and options.ckpt:
        raise RequestError("give only one of --random and --ckpt: both name the model")
    return [
        Request(**given_inputs(options), prompt=PROMPT, seed=1, width=width, height=height, num_outputs=outputs)
        for width, height in options.sizes
        for outputs in options.outputs
    ]


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = text.split("x")
        return int(width), int(height)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, as 512x512, not {text!r}") from error


def _model(options: argparse.Namespace) -> "Model":
    """The model that the options name, loaded, or one with random weights."""
    from ..benchmark import random_model
    from ..models import checkpoint, loading
    from ..models.device import default_device

    device = default_device()
    if options.random:
        return random_model.build(options.random, device)
    return loading.load(checkpoint.locate(options.ckpt), device)
