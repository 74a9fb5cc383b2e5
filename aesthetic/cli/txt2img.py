"""txt2img: images, with the flags and the file names of the original scripts/txt2img.py."""

import argparse
import logging
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from ..errors import DrawingError, RequestError
from ..images.sheet import grid
from ..request import FIELDS, Request
from ..writing import whole
from .arguments import (
    DRAWING,
    add_drawing,
    add_input,
    aesthetic_input,
    check_drawing,
    given_inputs,
    given_path,
    prompts_in,
)

__all__ = ["add", "txt2img"]

log = logging.getLogger(__name__)

IGNORED = ("C", "f", "config", "precision", "laion400m")  # the model's files decide these
OTHERS = ("aesthetic_embedding", "aesthetic_embedding_file", "aesthetic_images", "aesthetic_sweep", "num_outputs")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of txt2img."""
    flag = parser.add_argument
    flag("--from-file", type=given_path, metavar="FILE", help="Prompts, one per line, drawn once per iteration.")
    flag("--outdir", type=given_path, default=Path("outputs/txt2img-samples"), help="Folder to write to.")
    flag("--skip_grid", action="store_true", help="Write no grid.")
    flag("--skip_save", action="store_true", help="Write no single images.")
    flag("--plms", action="store_true", help="Use the scheduler PNDM; without it and --scheduler, DDIM is used.")
    flag("--fixed_code", action="store_true", help="Start every batch from the same noise.")
    flag("--n_iter", type=int, default=2, help="Batches of each prompt.")
    flag("--n_rows", type=int, default=0, help="Images in a row of the grid; 0: n_samples.")
    add_input(parser, "num_outputs", "--n_samples", metavar="N_SAMPLES")
    for name in FIELDS:
        if name not in DRAWING and name not in OTHERS:
            add_input(parser, name)
    help_text = FIELDS["aesthetic_embedding"].metadata["help"] + " Or the path of a .pt or .safetensors file."
    add_input(parser, "aesthetic_embedding", metavar="NAME_OR_PATH", help=help_text)
    add_drawing(parser)
    parser.set_defaults(num_outputs=3, scheduler=None)
    for name in IGNORED:
        flag(f"--{name}", help=argparse.SUPPRESS, nargs="?", const="")


def txt2img(options: argparse.Namespace) -> None:
    """Draw n_iter times n_samples images, or each prompt of a file n_iter times, and a grid of them all."""
    if options.n_iter < 1 or options.n_rows < 0:
        raise RequestError(f"--n_iter must be 1 or more, --n_rows 0 or more, not {options.n_iter} and {options.n_rows}")
    for name in IGNORED:
        if getattr(options, name) is not None:
            log.warning("--%s is a flag of the original script and has no effect here", name)
    requests = list(_requests(options))
    check_drawing(requests[0], options.ckpt)
    samples = options.outdir / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    from ..images import metadata
    from ..service import Service

    service = Service.load(options.ckpt)
    drawn, images = 0, []
    for request in requests:
        try:
            pictures = service.draw(request).images
        except DrawingError as error:  # the other prompts may still give images
            log.warning("%s", error)
            continue
        drawn += len(pictures)
        for image, recipe in pictures:
            if not options.skip_grid:
                images.append(image)
            if not options.skip_save:
                path = _next(samples, "", 5, options.output_format)
                metadata.write(path, image, recipe)
                print(path)
    if not drawn:
        raise DrawingError("no prompt gave an image")
    if not options.skip_grid:
        path = _next(options.outdir, "grid-", 4)
        with whole(path) as unfinished:
            grid(images, options.n_rows or options.num_outputs).save(unfinished)
        print(path)


def _requests(options: argparse.Namespace) -> Iterator[Request]:
    """One request for each prompt in each iteration; every image of the run has its own seed.

    As in the original, a prompt from a file gives one image in each iteration, whatever n_samples is. With --fixed_code
    all start from the same noise.
    """
    inputs = given_inputs(options)
    if name := inputs.pop("aesthetic_embedding"):
        inputs |= aesthetic_input(name)
    inputs["scheduler"] = options.scheduler or ("PNDM" if options.plms else "DDIM")
    if options.from_file is not None:
        inputs["num_outputs"] = 1
    prompts = [options.prompt] if options.from_file is None else prompts_in("--from-file", options.from_file)
    for _, prompt in product(range(options.n_iter), prompts):
        yield Request(**inputs | {"prompt": prompt})
        if not options.fixed_code:
            inputs["seed"] += inputs["num_outputs"]


def _next(folder: Path, prefix: str, digits: int, suffix: str = "png") -> Path:
    """A path with the next number after those in use, in any format, so that no file is overwritten."""
    taken = [int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(rf"{prefix}(\d+)\.\w+", path.name))]
    return folder / f"{prefix}{max(taken, default=-1) + 1:0{digits}}.{suffix}"
