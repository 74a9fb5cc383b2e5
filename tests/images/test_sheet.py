"""Grids and contact sheets."""

import pytest
from PIL import Image, ImageChops

from aesthetic.images.sheet import contact_sheet, grid, steps_label

RED = Image.new("RGB", (4, 4), "red")
CELL, GAP = 256, 8  # pixels


def marks(sheet: Image.Image, box: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """The box of what is not white in a part of a sheet, inside of that part."""
    part = sheet.crop(box)
    return ImageChops.invert(part).getbbox()


def test_grid() -> None:
    sheet = grid([RED] * 5, columns=3)
    assert sheet.size == (3 * 6 + 2, 2 * 6 + 2)
    assert sheet.getpixel((0, 0)) == (0, 0, 0)
    assert sheet.getpixel((2, 2)) == (255, 0, 0)
    assert sheet.getpixel((2 + 2 * 6, 2 + 6)) == (0, 0, 0)
    assert grid([RED], columns=3).size == (8, 8)


def test_labels_of_steps() -> None:
    assert [steps_label(steps) for steps in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]


@pytest.mark.parametrize(("width", "height"), [(512, 512), (512, 384), (300, 1000), (16, 8)])
def test_images_of_a_sheet_are_centered_in_their_places(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), "red")
    sheet = contact_sheet([[image, None], [None, image]], columns=["0 steps", "5 steps"], labels=["gold", "ink"])
    left, top = sheet.width - 2 * (CELL + GAP), sheet.height - 2 * (CELL + GAP)
    across, down = CELL * width / max(width, height) / 2, CELL * height / max(width, height) / 2
    for row in (0, 1):
        for column in (0, 1):
            x, y = left + column * (CELL + GAP), top + row * (CELL + GAP)
            expected = (CELL / 2 - across, CELL / 2 - down, CELL / 2 + across, CELL / 2 + down)
            found = marks(sheet, (x, y, x + CELL, y + CELL))
            assert found == (pytest.approx(expected, abs=1) if row == column else None)


def test_labels_of_a_sheet_are_in_the_middle_of_columns_and_rows() -> None:
    sheet = contact_sheet([[None] * 3] * 2, columns=["I"] * 3, labels=["I", "III"])
    left, top = sheet.width - 3 * (CELL + GAP), sheet.height - 2 * (CELL + GAP)
    for column in range(3):
        x = left + column * (CELL + GAP)
        found = marks(sheet, (x, 0, x + CELL, top))
        assert found is not None
        assert ((found[0] + found[2]) / 2, (found[1] + found[3]) / 2) == pytest.approx((CELL / 2, top / 2), abs=2)
    for row in range(2):
        y = top + row * (CELL + GAP)
        found = marks(sheet, (0, y, left, y + CELL))
        assert found is not None
        assert (found[0], (found[1] + found[3]) / 2) == pytest.approx((GAP, CELL / 2), abs=3)
        assert found[2] <= left - GAP
