"""txt2img: pictures, with the flags of the original code's scripts/txt2img.py and files named alike."""

import argparse
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DrawingError, RequestError
from ..images.sheet import grid
from ..request import FORMATS, SCHEDULERS, Request
from ..writing import whole
from .arguments import DEFAULTS, add_drawing, aesthetic_input, check_drawing, drawing_inputs, given_path, prompts_in

__all__ = ["STEERING", "WRITING", "add"]

log = logging.getLogger(__name__)

IGNORED = ("C", "f", "config", "precision", "laion400m")  # the model's files say all this
STEERING = (
    "aesthetic_mix",
    "aesthetic_until",
    "aesthetic_weight",
    "aesthetic_slerp",
    "aesthetic_text",
    "aesthetic_text_angle",
    "aesthetic_text_negative",
)
WRITING = ("output_format", "output_quality")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of txt2img, and what they run."""
    parser.set_defaults(run=txt2img)
    flag = parser.add_argument
    flag(
        "--from-file",
        type=given_path,
        metavar="FILE",
        help="draw each line of this file instead, once in each iteration",
    )
    flag("--outdir", type=given_path, default=Path("outputs/txt2img-samples"), help="where to write")
    flag("--skip_grid", action="store_true", help="write no grid")
    flag("--skip_save", action="store_true", help="write no single pictures")
    flag("--plms", action="store_true", help="sample with PLMS (the scheduler PNDM) instead of DDIM")
    flag("--scheduler", choices=SCHEDULERS, help="any other sampler")
    flag("--ddim_eta", type=float, default=0.0, help="DDIM's noise; 0 is deterministic")
    flag("--fixed_code", action="store_true", help="start every batch from the same noise")
    flag("--n_iter", type=int, default=2, help="batches of each prompt")
    flag("--n_samples", type=int, default=3, help="pictures in a batch")
    flag("--n_rows", type=int, default=0, help="pictures in a row of the grid; 0: n_samples")
    flag(
        "--aesthetic_steps", type=int, default=DEFAULTS["aesthetic_steps"], help="steps towards the aesthetic; 0: none"
    )
    flag("--aesthetic_embedding", metavar="PATH_OR_NAME", help="the aesthetic; blank: the model's default")
    flag("--output_format", choices=FORMATS, default=DEFAULTS["output_format"], help="of the single pictures")
    flag("--output_quality", type=int, default=DEFAULTS["output_quality"], help="of webp and jpg, 1 to 100")
    flag("--aesthetic_mix", metavar="MIX", help="several instead, as fantasy:0.7 gloomcore:-0.2")
    flag("--aesthetic_until", type=float, metavar="RISE", help="stop once the similarity has risen by this much")
    flag("--aesthetic_weight", type=float, default=1.0, help="0: the prompt as it is; 1: the personalised one")
    flag("--aesthetic_slerp", action="store_true", help="weigh on the sphere, token by token")
    flag("--aesthetic_text", default="", metavar="PHRASE", help="turn the aesthetic towards what this says")
    flag("--aesthetic_text_angle", type=float, default=DEFAULTS["aesthetic_text_angle"], help="how far, 0 to 1")
    flag("--aesthetic_text_negative", action="store_true", help="turn away from it instead")
    add_drawing(parser)
    for name in IGNORED:
        flag(f"--{name}", help=argparse.SUPPRESS, nargs="?", const="")


def txt2img(options: argparse.Namespace) -> None:
    """Draw n_iter times n_samples pictures, or each prompt of a file n_iter times, and a grid of all of them."""
    if options.n_iter < 1 or options.n_rows < 0:
        raise RequestError(f"--n_iter must be 1 or more, --n_rows 0 or more, not {options.n_iter} and {options.n_rows}")
    for name in IGNORED:
        if getattr(options, name) is not None:
            log.warning("--%s is the original's and makes no difference here", name)
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
            pictures = service.draw(request).pictures
        except DrawingError as error:  # one prompt that gives nothing need not stop the others
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
        raise DrawingError("there is no picture to show")
    if not options.skip_grid:
        path = _next(options.outdir, "grid-", 4)
        with whole(path) as unfinished:
            grid(images, options.n_rows or options.n_samples).save(unfinished)
        print(path)


def _requests(options: argparse.Namespace) -> Iterator[Request]:
    """One request for each prompt in each iteration; every picture of the run has a seed of its own.

    As in the original, a prompt from a file gives one picture in each iteration, whatever n_samples is. With
    --fixed_code all of them start from the same noise.
    """
    scheduler = options.scheduler or ("PNDM" if options.plms else "DDIM")
    seed, count = options.seed, options.n_samples if options.from_file is None else 1
    for _ in range(options.n_iter):
        for prompt in _prompts(options):
            yield Request(
                prompt=prompt,
                **aesthetic_input(options.aesthetic_embedding or None),
                aesthetic_steps=options.aesthetic_steps,
                num_outputs=count,
                scheduler=scheduler,
                seed=seed,
                ddim_eta=options.ddim_eta,
                **{name: getattr(options, name) for name in (*STEERING, *WRITING)},
                **drawing_inputs(options),
            )
            if not options.fixed_code:
                seed += count


def _prompts(options: argparse.Namespace) -> list[str]:
    if options.from_file is None:
        return [options.prompt]
    return prompts_in("--from-file", options.from_file)


def _next(folder: Path, prefix: str, digits: int, suffix: str = "png") -> Path:
    """The first number after all that are taken, in whatever format: nothing is ever overwritten."""
    taken = [int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(rf"{prefix}(\d+)\.\w+", path.name))]
    return folder / f"{prefix}{max(taken, default=-1) + 1:0{digits}}.{suffix}"
