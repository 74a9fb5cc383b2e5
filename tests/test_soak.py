"""The pieces of tests/soak that tell right from wrong."""

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from aesthetic.request import FIELDS, RENAMED
from tests.snapshot import ROOT
from tests.soak.client import Client
from tests.soak.inputs import SMALL, Inputs
from tests.soak.predictions import Same
from tests.soak.usage import trend


def test_a_leak_is_told_from_noise() -> None:
    dice = random.Random(0)
    noise = [500 + dice.gauss(0, 5) for _ in range(750)]
    flat, leak = trend(noise), trend([value + 0.02 * i for i, value in enumerate(noise)])
    assert flat.low < 0 < flat.high
    assert 0 < leak.low < 20 < leak.high  # per 1,000
    assert trend([7.0] * 100) == trend([0.0] * 100)


def test_a_changed_byte_is_found() -> None:
    files: Iterator[bytes] = iter([b"same", b"same", b"sane", b"same"])
    same = Same(SimpleNamespace(fixed_file=lambda: next(files)))  # type: ignore[arg-type]
    held = []
    for _ in range(3):
        same.again()
        held.append(same.finding("part").holds)
    assert held == [True, False, False]


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, {"status": "succeeded"}, True),
        (200, {"status": "failed", "error": "Prediction failed: Prediction failed: ImageError: image: no"}, True),
        (422, {"detail": []}, True),
        (200, {"status": "failed", "error": "Prediction failed: Prediction failed: KeyError: 'x'"}, False),
        (200, {"status": "processing"}, False),
        (500, {}, False),
    ],
)
def test_answers_that_the_api_does_not_have_are_kept(status: int, answer: dict[str, Any], *, expected: bool) -> None:
    client = Client("http://127.0.0.1:9", {})
    client.count(status, answer)
    assert (client.unexpected == []) == expected


def test_every_input_is_drawn() -> None:
    inputs = Inputs(random.Random(0), ROOT, ROOT / "weights" / "demo", SMALL)
    drawn = [inputs.draw() for _ in range(300)]
    assert {name for one in drawn for name in one} == {*FIELDS, *RENAMED}
