"""Sheets of images that the demo model draws, small enough for a repository.

    python -m weights.training.sheets -o weights/demo/pictures

styles.png has prompts with the words of each style; steps.png one prompt with each aesthetic, further and further, from
the same noise (`python -m aesthetic sweep` draws that large); the others are the strips of options.py.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from aesthetic.cli.main import exit_status
from aesthetic.request import Request
from aesthetic.service import Service

from . import lora
from . import options as shown
from .captions import AESTHETICS
from .evaluate import DRAWING, add_drawing_flags
from .follow import STEPS
from .judge import Judges

PROMPTS = ("a cat", "a castle", "a red car", "a rocket", "cherries", "a tree", "a fish", "a house")
SEED = 5  # draws the first prompt plainly, so that the effect of an aesthetic shows
CELL, GAP, TEXT = 112, 4, 14  # pixels
MOST = 400_000  # bytes of a file
COLOURS = (256, 128, 64, 32, 16)  # the most that fit are taken

Cell = tuple[str, str]  # the labels of its row and of its column


def styles(judges: Judges, prompts: Sequence[str]) -> dict[Cell, dict[str, Any]]:
    """What to ask for: each prompt with the words of each style."""
    return {
        (prompt, style): {"prompt": ", ".join(filter(None, (prompt, phrase))), "aesthetic_steps": 0}
        for prompt in prompts
        for style, phrase in ((style, judges.style_phrases[style]) for style in judges.styles)
    }


def steps(judges: Judges, prompt: str) -> dict[Cell, dict[str, Any]]:
    """What to ask for: a prompt with each aesthetic, each number of steps of it."""
    return {
        (name, "1 step" if stop == 1 else f"{stop} steps"): {
            "prompt": prompt,
            "aesthetic_embedding": name,
            "aesthetic_steps": stop,
        }
        for name in judges.styles
        if name in AESTHETICS
        for stop in STEPS
    }


def strips(service: Service, alike: Mapping[str, Any], folder: Path) -> dict[str, dict[Cell, dict[str, Any]]]:
    """What to ask for: each strip of options.py, by its name. The files that some of them take go to `folder`."""
    start = draw(service, {**alike, **shown.START})
    start.save(folder / "start.png")
    shown.mask(start.size).save(folder / "mask.png")
    (folder / "style.safetensors").write_bytes(lora.make(shown.LORA))
    found = shown.strips(folder / "start.png", folder / "mask.png", folder / "style.safetensors")
    return {
        name: {("", label): {**shown.ALIKE, **inputs} for label, inputs in strip.items()}
        for name, strip in found.items()
    }


def draw(service: Service, inputs: Mapping[str, Any]) -> Image.Image:
    """The one image of some inputs. Raises AestheticError."""
    [(image, _)] = service.draw(Request(**inputs)).images
    return image


def sheet(images: Mapping[Cell, Image.Image], cells: Sequence[Cell]) -> Image.Image:
    """The images in rows and columns, in the order of `cells`, with their labels, each reduced to CELL pixels."""
    rows, columns = (list(dict.fromkeys(labels)) for labels in zip(*cells, strict=True))
    font = ImageFont.load_default(TEXT)
    left, top, pitch = int(max(map(font.getlength, rows))) + 3 * GAP, TEXT + 3 * GAP, CELL + GAP
    image = Image.new("RGB", (left + len(columns) * pitch, top + len(rows) * pitch), "white")
    pen = ImageDraw.Draw(image)
    for x, label in enumerate(columns):
        pen.text((left + x * pitch + CELL / 2, top / 2), label, "black", font, anchor="mm")
    for y, label in enumerate(rows):
        pen.text((left - 2 * GAP, top + y * pitch + CELL / 2), label, "black", font, anchor="rm")
    for (row, column), one in images.items():
        small = one.resize((CELL, CELL), Image.Resampling.LANCZOS)
        image.paste(small, (left + columns.index(column) * pitch, top + rows.index(row) * pitch))
    return image


def compressed(image: Image.Image) -> bytes:
    """A PNG with as many colours as MOST allows."""
    for colours in COLOURS:
        file = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() <= MOST:
            break
    return file.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Draw the sheets; returns the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status("sheets", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    alike = {name: getattr(options, name) for name in ("seed", *DRAWING)}
    judges, service = Judges.load(options.judges), Service.load("demo")
    options.output.mkdir(parents=True, exist_ok=True)
    sheets = {"styles": styles(judges, options.prompts), "steps": steps(judges, options.prompts[0])}
    with tempfile.TemporaryDirectory() as folder:
        for name, cells in {**sheets, **strips(service, alike, Path(folder))}.items():
            if name in (options.only or [name]):
                images = {cell: draw(service, {**alike, **cells[cell]}) for cell in tqdm(cells, unit="image")}
                path = options.output / f"{name}.png"
                path.write_bytes(compressed(sheet(images, list(cells))))
                print(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m weights.training.sheets", description="Draw the README's images.")
    add_drawing_flags(parser, seed=SEED)
    flag = parser.add_argument
    flag("--prompts", nargs="+", default=PROMPTS, help="the rows of styles.png; the first is that of steps.png")
    flag("--only", nargs="+", metavar="NAME", help="only these sheets: styles, steps, weight, mix, ...")
    flag("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
