"""Sheets of what the demo model draws, small enough for a repository.

    python -m weights.training.sheets -o weights/demo/pictures

styles.png has prompts with the words of each style; steps.png one prompt with each aesthetic, further and further, from
the same noise (`python -m aesthetic sweep` draws that large); the others are the strips of options.py.
"""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from . import lora
from . import options as shown
from .captions import AESTHETICS
from .evaluate import STEPS, JudgesLike, Settings, add_drawing_flags
from .judge import Judges
from .predictions import DEFAULT_SERVER, PredictionError, predict, share

PROMPTS = ("a cat", "a castle", "a red car", "a rocket", "cherries", "a tree", "a fish", "a house")
SEED = 5  # with which the first prompt is drawn plainly, so that what an aesthetic adds is seen
CELL, GAP, TEXT = 112, 4, 14  # pixels
MOST = 400_000  # bytes of a file
COLOURS = (256, 128, 64, 32, 16)  # the most that fit are taken

Cell = tuple[str, str]  # the labels of its row and of its column


def styles(judges: JudgesLike, prompts: Sequence[str]) -> dict[Cell, dict[str, Any]]:
    """What to ask for: each prompt with the words of each style."""
    return {
        (prompt, style): {"prompt": ", ".join(filter(None, (prompt, phrase))), "aesthetic_steps": 0}
        for prompt in prompts
        for style, phrase in ((style, judges.style_phrases[style]) for style in judges.styles)
    }


def steps(judges: JudgesLike, prompt: str) -> dict[Cell, dict[str, Any]]:
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


def strips(server: str, alike: Mapping[str, Any]) -> dict[str, dict[Cell, dict[str, Any]]]:
    """What to ask for: each strip of options.py, by its name. Some of them take a picture or a LoRA, made here."""
    [start] = predict(server, {**alike, **shown.START})
    return {
        name: {("", label): {**shown.ALIKE, **inputs} for label, inputs in strip.items()}
        for name, strip in shown.strips(start, lora.make(shown.LORA)).items()
    }


def draw(
    servers: Sequence[str], cells: Mapping[Cell, dict[str, Any]], alike: dict[str, Any]
) -> dict[Cell, Image.Image]:
    """The pictures of the cells, each reduced to CELL pixels. Raises PredictionError."""

    def work(server: str, cell: Cell) -> Image.Image:
        inputs = {name: value for name, value in {**alike, **cells[cell]}.items() if value is not None}
        [picture] = predict(server, inputs)
        return picture.resize((CELL, CELL), Image.Resampling.LANCZOS)

    return dict(tqdm(share(servers, cells, work), total=len(cells), unit="picture"))


def sheet(pictures: Mapping[Cell, Image.Image], cells: Sequence[Cell]) -> Image.Image:
    """The pictures in rows and columns, in the order of `cells`, with their labels."""
    rows, columns = (list(dict.fromkeys(labels)) for labels in zip(*cells, strict=True))
    font = ImageFont.load_default(TEXT)
    left, top, pitch = int(max(map(font.getlength, rows))) + 3 * GAP, TEXT + 3 * GAP, CELL + GAP
    image = Image.new("RGB", (left + len(columns) * pitch, top + len(rows) * pitch), "white")
    pen = ImageDraw.Draw(image)
    for x, label in enumerate(columns):
        pen.text((left + x * pitch + CELL / 2, top / 2), label, "black", font, anchor="mm")
    for y, label in enumerate(rows):
        pen.text((left - 2 * GAP, top + y * pitch + CELL / 2), label, "black", font, anchor="rm")
    for (row, column), picture in pictures.items():
        image.paste(picture, (left + columns.index(column) * pitch, top + rows.index(row) * pitch))
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
    settings = Settings(inference_steps=options.inference_steps, scheduler=options.scheduler, size=options.size)
    alike = {"seed": options.seed, **settings.inputs}
    try:
        judges = Judges.load(options.judges)
        options.output.mkdir(parents=True, exist_ok=True)
        servers = options.server or [DEFAULT_SERVER]
        sheets = {"styles": styles(judges, options.prompts), "steps": steps(judges, options.prompts[0])}
        for name, cells in {**sheets, **strips(servers[0], alike)}.items():
            if name in (options.only or [name]):
                path = options.output / f"{name}.png"
                path.write_bytes(compressed(sheet(draw(servers, cells, alike), list(cells))))
                print(path)
    except (PredictionError, OSError) as error:
        print(f"sheets: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weights.training.sheets", description="Draw the README's pictures."
    )
    add_drawing_flags(parser)
    flag = parser.add_argument
    flag("--prompts", nargs="+", default=PROMPTS, help="the rows of styles.png; the first is that of steps.png")
    flag("--only", nargs="+", metavar="NAME", help="only these sheets: styles, steps, weight, mix, ...")
    flag("--seed", type=int, default=SEED, help="of every picture")
    flag("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
