"""Several images in one: grids and labeled contact sheets."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["contact_sheet", "grid", "steps_label"]


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Images of one size in one, row by row, with two black pixels between and around them."""
    width, height = (side + 2 for side in images[0].size)
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    sheet = Image.new("RGB", (columns * width + 2, rows * height + 2))
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image, (2 + column * width, 2 + row * height))
    return sheet


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]], *, columns: Sequence[str], labels: Sequence[str] = ()
) -> Image.Image:
    """Small images in rows, with a label above each column and before each row; None leaves its place empty."""
    size, gap, font = 256, 8, ImageFont.load_default(20)
    left = max([gap, *(int(font.getlength(label)) + 2 * gap for label in labels)])
    top = 20 + 2 * gap
    sheet = Image.new("RGB", (left + len(columns) * (size + gap), top + len(rows) * (size + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for x, column in enumerate(columns):
        pen.text((left + x * (size + gap) + size / 2, top / 2), column, "black", font, anchor="mm")
    for y, row in enumerate(rows):
        for label in labels[y : y + 1]:
            pen.text((gap, top + y * (size + gap) + size / 2), label, "black", font, anchor="lm")
        for x, image in enumerate(row):
            if image is not None:
                small = ImageOps.contain(image, (size, size))
                corner = (left + x * (size + gap), top + y * (size + gap))
                sheet.paste(small, (corner[0] + (size - small.width) // 2, corner[1] + (size - small.height) // 2))
    return sheet


def steps_label(steps: int) -> str:
    """The label of an image after this number of steps."""
    return f"{steps} step" + "s" * (steps != 1)
