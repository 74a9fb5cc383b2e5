"""All commands, and how each of them ends."""

import argparse
import logging
import os
import sys
from collections.abc import Callable

from ..errors import AestheticError
from ..settings import silence_libraries
from . import benchmark, download_weights, embeddings, evaluate, predict, recipe, sweep, txt2img

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "predict": (predict.add, "draw images, with the inputs of predict.py and the API"),
    "txt2img": (txt2img.add, "draw pictures, with the flags of the original script"),
    "sweep": (sweep.add, "draw a sheet of aesthetics × steps"),
    "evaluate": (evaluate.add, "measure what the steps do, with plots and intervals"),
    "bench": (benchmark.add_bench, "measure how fast it is, beside plain diffusers"),
    "warm": (benchmark.add_warm, "compile for the GPU that is here: for AESTHETIC_SPEED=compile"),
    "download-weights": (download_weights.add, "fetch Stable Diffusion 1.5, CLIP and the published aesthetics"),
    "embed": (embeddings.add_embed, "make an aesthetic from pictures"),
    "embeddings": (embeddings.add_embeddings, "list the named aesthetics"),
    "convert": (embeddings.add_convert, "write an aesthetic as .pt or .safetensors, and show its notes"),
    "recipe": (recipe.add, "tell what made a picture, and how to make it again"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 1 after an error that was the user's to mend."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    silence_libraries()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # which tqdm reads when it is imported
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (AestheticError, OSError) as error:
        print(f"aesthetic: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aesthetic", description="Aesthetic gradients.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add, purpose) in COMMANDS.items():
        add(commands.add_parser(name, help=purpose))
    return parser
