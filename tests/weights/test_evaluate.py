"""The evaluation and the sheets with a service and judges that are fakes: an image's color says what is in it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from aesthetic.cluster import workers
from aesthetic.errors import DrawingError
from aesthetic.evaluation.results import read_rows
from aesthetic.images.metadata import Recipe
from aesthetic.request import Request
from aesthetic.service import Service
from tests.cluster import in_process
from tests.snapshot import ROOT
from weights.training import evaluate, lora, options, sheets
from weights.training.captions import AESTHETICS
from weights.training.follow import STEPS
from weights.training.judge import Judges

STYLES = ("flat", *AESTHETICS)
SUBJECTS = tuple(f"thing{i}" for i in range(8))


class FakeJudges:
    """Reads the style in red and the subject in green. Its five likeliest subjects are that one and the first four."""

    styles = STYLES
    subjects = SUBJECTS
    prompts = SUBJECTS[5:7]
    captions = {name: f"a {name}" for name in SUBJECTS}  # noqa: RUF012
    style_phrases = {name: "" if name == "flat" else f"in {name}" for name in STYLES}  # noqa: RUF012
    accuracy = {"styles": 0.987}  # noqa: RUF012

    def style_probabilities(self, images: Tensor) -> Tensor:  # noqa: D102
        assert images.dtype == torch.uint8
        return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), len(STYLES)) * 0.5 + 0.25

    def subject_scores(self, images: Tensor) -> Tensor:  # noqa: D102
        found = torch.nn.functional.one_hot(images[:, 1, 0, 0].long(), len(SUBJECTS))
        return found * 10.0 - torch.arange(float(len(SUBJECTS)))


class FakeService:
    """Draws as a good model would: the words' style, or the aesthetic's from 3 steps on; at 20 the subject is lost."""

    model = None

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def draw(self, request: Request) -> Any:  # noqa: D102
        self.asked.append(request)
        return SimpleNamespace(images=self._batch(request, request.aesthetic_steps, request.num_outputs))

    def draw_batches(self, request: Request, count: int) -> Iterator[tuple[int, Any]]:  # noqa: D102
        self.asked.append(request)
        for steps in request.sweep or (0,):
            yield steps, self._batch(request, steps, count)

    def _batch(self, request: Request, steps: int, count: int) -> list[tuple[Image.Image, Recipe]]:
        style = next((name for name in AESTHETICS if f"in {name}" in request.prompt), "flat")
        if steps >= 3:
            style = request.aesthetic_embedding or "flat"
        subject = int(found[1]) if (found := re.search(r"thing(\d)", request.prompt)) else 0
        image = Image.new("RGB", (64, 64), (STYLES.index(style), 7 if steps == 20 else subject, 0))
        assert request.seed is not None
        seeds = range(request.seed, request.seed + count)
        alone = [replace(request, aesthetic_sweep=None, num_outputs=1, seed=seed) for seed in seeds]
        facts = {"name": "fake", "revision": "1", "precision": "float32", "speed": "plain"}
        return [(image, Recipe.of(one, model=facts, aesthetic={}, files={})) for one in alone]


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = FakeJudges()
    monkeypatch.setattr(Judges, "load", lambda folder: fake)
    return fake


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AESTHETIC_HOME", str(ROOT))
    fake = FakeService()
    monkeypatch.setattr(Service, "load", lambda model: fake)
    monkeypatch.setattr(workers, "work", in_process.work)
    monkeypatch.setattr(lora, "make", lambda style: style.encode())  # tests/test_effects.py makes a true one
    return fake


def test_the_report_is_the_judges(service: FakeService, judges: Any, tmp_path: Path) -> None:
    arguments = [f"--outdir={tmp_path}", "--seeds=2", "--num_inference_steps=3"]
    assert evaluate.main(arguments) == 0
    rows = read_rows(tmp_path / "results.csv")
    assert len(rows) == 2 * len(AESTHETICS) * len(STEPS) * 2
    assert {row.aesthetic for row in rows} == set(AESTHETICS)
    assert {row.seed for row in rows} == {0, 1}
    for row in rows:
        assert row.numbers == {
            "style_probability": 0.75 if row.steps >= 3 else 0.25,
            "subject_top5": float(row.steps < 20),
        }
    text = (tmp_path / "report.md").read_text()
    assert "| steps | probability of the style | gained | subject recognized | lost | rows |" in text
    gained, lost = "+0.5000 (+0.5000 to +0.5000)", "+1.0000 (+1.0000 to +1.0000)"
    assert f"| 20 | 0.7500 | {gained} | 0.0000 | {lost} | 44 |" in text
    assert json.loads((tmp_path / "settings.json").read_text())["judges"] == judges.accuracy
    assert {request.num_inference_steps for request in service.asked} == {3}
    drawn = len(service.asked)
    assert evaluate.main(arguments) == 0
    assert len(service.asked) == drawn, "a finished evaluation draws again"


def test_a_subject_and_a_style_are_recognized_in_words(service: Any, judges: Any) -> None:
    text = evaluate.words(service, judges, {"seed": 0}, 2)
    # Of 8 subjects, hits have the Wilson interval of 8 in 8.
    assert "recognized in 8 of 8 images (95 % interval 67.6% to 100.0%)" in text
    for style in STYLES:
        assert f"| {style} | 4 | 100.0% | 100.0% |" in text
    prompts = [request.prompt for request in service.asked]
    assert prompts[:9] == [*judges.captions.values(), "a thing5"]
    assert prompts[-1] == f"a thing6, in {AESTHETICS[-1]}"


def test_what_the_judges_miss_is_counted_and_named(service: Any, judges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Image.new("RGB", (64, 64))  # flat, and shows thing0
    monkeypatch.setattr(evaluate, "_draw", lambda service, prompt, drawing, count: [plain] * count)
    text = evaluate.words(service, judges, {"seed": 0}, 2)
    assert "recognized in 5 of 8 images" in text  # things 0 to 4 are among the five likeliest
    assert "Not recognized: thing5, thing6, thing7." in text
    assert "| flat | 4 | 100.0% | 0.0% |" in text
    assert "| ink | 4 | 0.0% | 0.0% |" in text


def test_the_trained_judges_know_each_subject_by_its_own_prompt() -> None:
    judges = Judges.load()
    assert len(set(judges.captions.values())) == len(judges.subjects) == 200
    assert set(AESTHETICS) < set(judges.styles)
    styles, known = evaluate.look(judges, [Image.new("RGB", (512, 512), "white")] * 2, judges.captions["castle"])
    assert styles.shape == (2, len(judges.styles))
    assert len(known) == 2


def test_errors_are_one_line(service: Any, judges: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.txt").touch()
    assert evaluate.main([f"--outdir={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith("evaluate: --outdir ")


def test_sheets_are_small_files(
    service: FakeService, judges: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["-o", str(tmp_path / "new"), "--prompts", "a thing1", "a thing2", "--only", "styles", "steps"]
    assert sheets.main(flags) == 0
    start = 1
    assert len(service.asked) == start + 2 * len(STYLES) + len(AESTHETICS) * len(STEPS)
    sizes = {"styles": (len(STYLES), 2), "steps": (len(STEPS), len(AESTHETICS))}
    for name, (columns, rows) in sizes.items():
        with Image.open(tmp_path / "new" / f"{name}.png") as image:
            assert image.mode == "P"
            assert columns * 116 < image.width < columns * 116 + 100
            assert image.height == 26 + rows * 116
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    fine = sheets.compressed(noise)
    monkeypatch.setattr(sheets, "MOST", len(fine) - 1)
    assert len(sheets.compressed(noise)) < len(fine)


def test_each_way_to_draw_has_its_strip(service: FakeService, judges: Any, tmp_path: Path) -> None:
    names = set(options.strips(Path("start.png"), Path("mask.png"), Path("lora.safetensors")))
    assert sheets.main(["-o", str(tmp_path), "--only", *names]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == names
    assert all(request.seed == sheets.SEED for request in service.asked)
    assert {request.image is None for request in service.asked} == {True, False}


def test_a_failure_to_draw_stops_the_sheets(
    service: Any, judges: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(request: Request) -> Any:
        raise DrawingError("the denoising overflowed")

    monkeypatch.setattr(service, "draw", failing)
    assert sheets.main(["-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "sheets: the denoising overflowed\n"


def test_a_sheet_has_each_image_in_its_place() -> None:
    cells = [(row, column) for row in ("cat", "castle") for column in ("ink", "neon")]
    images = {cell: Image.new("RGB", (64, 64), (10 * i, 0, 0)) for i, cell in enumerate(cells, start=1)}
    sheet = sheets.sheet(dict(reversed(images.items())), cells)
    left = sheet.width - 2 * 116
    found = [sheet.getpixel((left + x * 116 + 50, 26 + y * 116 + 50)) for y in range(2) for x in range(2)]
    assert found == [(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0)]
