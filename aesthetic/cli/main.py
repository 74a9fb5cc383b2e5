"""The table of all commands, and what turns their errors into messages and an exit status."""

import argparse
import logging
import os
import sys
from collections.abc import Callable

from ..errors import AestheticError
from ..settings import silence_libraries
from . import benchmark, cluster, download_weights, embeddings, evaluate, predict, recipe, sweep, txt2img, ui
from .arguments import HelpFormatter

__all__ = ["COMMANDS", "exit_status", "main"]

# The functions that add a command's flags and that run it, and its purpose.
COMMANDS: dict[str, tuple[Callable[..., None], Callable[..., None], str]] = {
    "predict": (predict.add, predict.predict, "draw images, with the inputs of predict.py and the API"),
    "txt2img": (txt2img.add, txt2img.txt2img, "draw images, with the flags of the original script"),
    "sweep": (sweep.add, sweep.sweep, "draw a sheet of aesthetics × steps"),
    "batch": (cluster.add_batch, cluster.batch, "draw a file of requests on many GPUs"),
    "serve": (cluster.add_serve, cluster.serve, "answer predictions over HTTP with many GPUs, from one queue"),
    "evaluate": (evaluate.add, evaluate.evaluate, "measure what the steps do, with plots and intervals"),
    "bench": (benchmark.add, benchmark.bench, "measure how fast it is, beside plain diffusers"),
    "download-weights": (download_weights.add, download_weights.run, "fetch Stable Diffusion 1.5, CLIP and aesthetics"),
    "embed": (embeddings.add_embed, embeddings.embed, "make an aesthetic from images"),
    "embeddings": (embeddings.add_embeddings, embeddings.embeddings, "list the named aesthetics"),
    "convert": (embeddings.add_convert, embeddings.convert, "convert a .pt or .safetensors, and show its notes"),
    "ui": (ui.add, ui.ui, "draw, compare and make aesthetics on a page in the browser"),
    "recipe": (recipe.add, recipe.recipe, "show how an image was made, and the command that draws it again"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, 1 after an error that the user can mend, or 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    silence_libraries()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # which tqdm reads when it is imported
    options = _parser().parse_args(arguments)
    return exit_status("aesthetic", lambda: options.run(options))


def exit_status(program: str, action: Callable[[], object]) -> int:
    """Run `action` and return the program's exit status; an error that the user can mend is one line."""
    try:
        action()
    except BrokenPipeError:  # of the reader's choice, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush fails
    except (AestheticError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aesthetic", description="Aesthetic gradients.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add, run, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, formatter_class=HelpFormatter)
        command.set_defaults(run=run)
        add(command)
    return parser
