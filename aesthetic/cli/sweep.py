"""sweep, and the sheet of embeddings --preview: images of aesthetics × steps, side by side."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DrawingError, RequestError
from ..images.sheet import contact_sheet, steps_label
from ..request import Request
from ..writing import whole
from .arguments import (
    add_drawing,
    add_input,
    aesthetic_input,
    check_drawing,
    given_inputs,
    given_path,
    require_writable,
)

if TYPE_CHECKING:
    from PIL import Image

    from ..service import Service

__all__ = ["add", "preview", "sweep"]

log = logging.getLogger(__name__)

PREVIEW = "0,2,5,10"
THUMBNAIL = 112  # pixels


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of sweep."""
    add_drawing(parser)
    flag = parser.add_argument
    flag("--aesthetics", nargs="+", required=True, metavar="NAME_OR_PATH", help="Aesthetics, one per row.")
    flag("--steps", nargs="+", type=int, default=[0, 2, 5, 10, 20], help="Numbers of aesthetic steps, one per column.")
    add_input(parser, "scheduler")
    flag("-o", "--output", type=given_path, default=Path("sweep.png"), metavar="NAME.png", help="File to write to.")


def sweep(options: argparse.Namespace) -> None:
    """Draw a sheet from one noise: a row for each aesthetic, a column for each number of steps."""
    if not options.prompt.strip():
        raise RequestError("--prompt must not be blank: without words, no number of steps changes the image")
    stops = ",".join(map(str, options.steps))
    requests = [
        Request(**given_inputs(options), **aesthetic_input(name), aesthetic_sweep=stops) for name in options.aesthetics
    ]
    require_writable(options.output, ".png")
    for request in requests:
        check_drawing(request, options.ckpt)
    from ..service import Service

    _draw(Service.load(options.ckpt), requests, [Path(name).stem for name in options.aesthetics], options.output)


def preview(options: argparse.Namespace) -> None:
    """Draw a sheet of one image with each named aesthetic that has been downloaded and fits the model."""
    require_writable(options.preview, ".png", flag="--preview")
    from ..service import Service

    service = Service.load(options.ckpt)
    registry, clip_space = service.registry, service.model.clip_space
    names = registry.present(clip_space)
    if not names:
        raise RequestError(f"no named aesthetic of the model's CLIP space {clip_space} has been downloaded")
    requests = [
        Request(
            prompt="a castle",
            aesthetic_embedding=name,
            aesthetic_sweep=PREVIEW,
            num_inference_steps=options.num_inference_steps,
            scheduler="DPMSolverMultistep",
            seed=1,
        )
        for name in names
    ]
    rows = _draw(service, requests, names, options.preview)
    folder = registry.folder / "thumbnails"  # where aesthetic/ui looks for them
    folder.mkdir(exist_ok=True)
    for name, row in zip(names, rows, strict=True):
        if row[-1] is not None:
            row[-1].resize((THUMBNAIL, THUMBNAIL)).save(folder / f"{name}.webp")


def _draw(
    service: "Service", requests: list[Request], labels: list[str], path: Path
) -> "list[list[Image.Image | None]]":
    """Draw sweeps over the same numbers of steps, and write them as the rows of one sheet, which are returned."""
    from tqdm import tqdm

    stops, rows = requests[0].sweep, []
    for request in tqdm(requests, desc="Aesthetics"):
        shown = {}
        try:
            shown = {recipe.request["aesthetic_steps"]: image for image, recipe in service.draw(request).images}
        except DrawingError as error:  # the other rows may still give images
            log.warning("%s", error)
        rows.append([shown.get(steps) for steps in stops])
    sheet = contact_sheet(rows, columns=[steps_label(steps) for steps in stops], labels=labels)
    with whole(path) as unfinished:
        sheet.save(unfinished)
    print(path)
    return rows
