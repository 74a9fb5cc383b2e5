"""bench and warm: how fast pictures are drawn, and the code that makes it faster."""

import argparse
import json
from typing import TYPE_CHECKING

from .. import settings
from ..acceleration import accelerate
from ..errors import RequestError
from ..request import SCHEDULERS, Request
from ..writing import whole
from .arguments import DEFAULTS, add_ckpt, given_path, require_writable

if TYPE_CHECKING:
    from ..models.loading import Model
    from ..service import Service

__all__ = ["add_bench", "add_warm"]


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the flags of bench, and what they run."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(run=bench)
    flag = parser.add_argument
    flag("--speeds", nargs="+", metavar="SPEED", help="of plain, graph and compile; without, what the service takes")
    flag("--steps", type=int, default=DEFAULTS["num_inference_steps"], help="denoising steps")
    flag("--aesthetic_steps", type=int, default=DEFAULTS["aesthetic_steps"], help="steps towards the aesthetic")
    flag("--scheduler", choices=SCHEDULERS, default=DEFAULTS["scheduler"], help="the sampler")
    flag("--repeats", type=int, default=5, help="of everything, after a first time that doesn't count")
    flag("--json", type=given_path, metavar="NAME.json", help="write all that was measured, for machines")
    _add_shapes(parser)


def bench(options: argparse.Namespace) -> None:
    """Measure each stage and the whole of predictions beside plain diffusers with the original's loop."""
    if options.repeats < 1:
        raise RequestError(f"--repeats must be 1 or more, not {options.repeats}")
    _require_one_model(options)
    requests = [
        Request(
            seed=1,
            width=width,
            height=height,
            num_outputs=outputs,
            num_inference_steps=options.steps,
            aesthetic_steps=options.aesthetic_steps,
            scheduler=options.scheduler,
        )
        for width, height in options.sizes
        for outputs in options.outputs
    ]
    if options.json is not None:
        require_writable(options.json, ".json", flag="--json")
    from ..benchmark import benchmark
    from ..models.device import default_device

    device = default_device()
    speeds = options.speeds or [settings.speed(device.type)]
    known = settings.SPEEDS if device.type == "cuda" else ("plain",)
    if not set(speeds) <= set(known) or len(set(speeds)) < len(speeds):
        raise RequestError(f"--speeds must be of {', '.join(known)} on this machine, each once, not {' '.join(speeds)}")
    if "compile" in speeds:
        accelerate.prepare(_model(options), requests)
    measured = benchmark.run(
        lambda speed: _at_speed(_model(options), speed), speeds, requests, repeats=options.repeats, say=print
    )
    if options.json is not None:
        with whole(options.json) as unfinished:
            unfinished.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def add_warm(parser: argparse.ArgumentParser) -> None:
    """Add the flags of warm, and what they run."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(run=warm)
    _add_shapes(parser)


def warm(options: argparse.Namespace) -> None:
    """Compile what pictures of some sizes are drawn with, for the GPU that is here."""
    _require_one_model(options)
    from ..models.device import default_device

    requests = [
        Request(width=width, height=height, num_outputs=outputs)
        for width, height in options.sizes
        for outputs in options.outputs
    ]
    if default_device().type != "cuda":
        raise RequestError("there is no CUDA GPU here to compile for")
    accelerate.prepare(_model(options), requests)
    print("AESTHETIC_SPEED=compile draws with it.")


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--random", choices=["sd15", "tiny"], help="random weights of these shapes, in place of a model")
    flag("--sizes", type=_size, nargs="+", default=[(512, 512)], metavar="WIDTHxHEIGHT", help="pixels")
    flag("--outputs", type=int, nargs="+", default=[1], metavar="COUNT", help="pictures at once")
    add_ckpt(parser)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = text.split("x")
        return int(width), int(height)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, as 512x512, not {text!r}") from error


def _require_one_model(options: argparse.Namespace) -> None:
    if options.random and options.ckpt:
        raise RequestError("give only one of --random and --ckpt: both name the model")


def _model(options: argparse.Namespace) -> "Model":
    """That of the options, or one with random weights, of which nothing is on the disk."""
    from ..benchmark import random_model
    from ..models import checkpoint, loading
    from ..models.device import default_device

    device = default_device()
    if options.random:
        return random_model.build(options.random, device)
    return loading.load(checkpoint.locate(options.ckpt), device)


def _at_speed(model: "Model", speed: str) -> "Service":
    from ..embeddings.registry import Registry
    from ..service import Service

    return Service(model, Registry(), accelerate.choose(model, speed, accelerate.code(speed)))
