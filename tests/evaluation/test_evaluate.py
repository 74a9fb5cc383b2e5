"""The command evaluate, from prompts to a report."""

import importlib.util
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from aesthetic.cli.evaluate import PROMPTS
from aesthetic.cli.main import main
from aesthetic.cluster import workers
from aesthetic.embeddings import embedding
from aesthetic.evaluation import aesthetic_score, evaluate
from aesthetic.evaluation.judges import clip_judge
from aesthetic.evaluation.results import read_rows
from aesthetic.images.metadata import read_recipe
from aesthetic.models.checkpoint import Snapshot
from aesthetic.personalizer import Personalizer
from aesthetic.pipeline import sampling
from aesthetic.service import Service
from aesthetic.writing import alone
from tests import snapshot
from tests.cluster import in_process
from tests.models import sd2

SMALL = ["--width=128", "--height=128", "--num_inference_steps=2", "--scheduler=DDIM", "--aesthetic_lr=0.01"]
FEW = ["--prompts=prompts.txt", "--aesthetics", "fantasy", "gloomcore", "--steps", "0", "1", "3", "--seeds=2"]
ARGUMENTS = ["evaluate", *FEW, *SMALL]
RAY = workers.work


@pytest.fixture(autouse=True)
def _tiny(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    monkeypatch.setattr(workers, "work", in_process.work)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("# of animals\nthe cat\n\nthe dog\nthe cat\n", encoding="utf-8")


@pytest.fixture(scope="session")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run in one process."""
    return run(home, tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="session")
def scored(scoring: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run with LAION's predictor."""
    return run(scoring, tmp_path_factory.mktemp("scored"))


def run(home: Path, folder: Path) -> Path:
    (folder / "prompts.txt").write_text("the cat\nthe dog\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AESTHETIC_HOME", str(home))
        patch.setenv("TQDM_DISABLE", "")  # else the command sets it for the tests of other files
        patch.setattr(workers, "work", in_process.work)
        patch.chdir(folder)
        assert main([*ARGUMENTS, "--outdir=out"]) == 0
    return folder / "out"


@pytest.fixture(scope="session")
def scoring(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`home` with LAION's predictor, whose random weights give scores around 5."""
    scoring = tmp_path_factory.mktemp("scoring")
    (scoring / "embeddings").symlink_to(home / "embeddings")
    manifest = json.loads((home / "weights" / "manifest.json").read_text())
    for name in manifest:
        (scoring / "weights").mkdir(exist_ok=True)
        (scoring / "weights" / name).symlink_to(home / "weights" / name)
    own = json.loads((snapshot.ROOT / "weights" / "manifest.json").read_text())[aesthetic_score.NAME]
    snapshot.write_json(scoring / "weights" / "manifest.json", {**manifest, aesthetic_score.NAME: own})
    [file] = own["files"]
    (scoring / "weights" / aesthetic_score.NAME).mkdir()
    numbers = torch.Generator().manual_seed(4)
    state = {"weight": torch.randn(1, 24, generator=numbers), "bias": torch.tensor([5.0])}
    torch.save(state, scoring / "weights" / aesthetic_score.NAME / file)
    return scoring


def head(home: Path) -> Path:
    path = aesthetic_score.locate(home / "weights")
    assert path is not None
    return path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    return capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_writes_rows_images_plots_and_a_report(whole: Path) -> None:
    rows = read_rows(whole / "results.csv")
    assert len({(row.prompt, row.aesthetic, row.steps, row.seed) for row in rows}) == len(rows) == 2 * 2 * 3 * 2
    assert {row.seed for row in rows} == {42, 43}
    # At 0 steps, one image serves both aesthetics.
    assert len({row.image for row in rows}) == len(list((whole / "pictures").iterdir())) == 2 * 2 * (1 + 2 * 2)
    text = (whole / "report.md").read_text()
    assert "2 prompts × 2 aesthetics × 3 numbers of steps × 2 seeds" in text
    assert "## fantasy" in text
    assert "no image" not in text
    for name in ("tradeoff.png", "steps.png", "sheet.png"):
        assert f"({name})" in text
        with Image.open(whole / name) as image:
            assert image.width > 500


def test_the_similarities_are_those_of_the_untouched_clip(whole: Path, clip: CLIPModel, service: Service) -> None:
    assert service.model.vision is not None
    for row in read_rows(whole / "results.csv"):
        with Image.open(whole / "pictures" / row.image) as image:
            pixels = service.model.vision.prepare(image)[None]
        tokens = service.model.pipeline.tokenizer(row.prompt, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            seen = clip(input_ids=tokens, pixel_values=pixels)
        [features], [words] = seen.image_embeds, seen.text_embeds
        aesthetic = service.registry.load(row.aesthetic).vector[0]
        assert row.numbers["similarity_to_prompt"] == pytest.approx((features @ words / words.norm()).item(), abs=1e-5)
        assert row.numbers["similarity_to_aesthetic"] == pytest.approx((features @ aesthetic).item(), abs=1e-5)


def test_scores_are_those_of_the_predictor(
    scoring: Path, scored: Path, whole: Path, clip: CLIPModel, service: Service
) -> None:
    rows, state = read_rows(scored / "results.csv"), torch.load(head(scoring), weights_only=True)
    assert service.model.vision is not None
    for row in rows:
        with Image.open(scored / "pictures" / row.image) as image, torch.no_grad():
            pixels = service.model.vision.prepare(image)[None]
            features = clip.get_image_features(pixels).pooler_output
        [theirs] = torch.nn.functional.linear(features / features.norm(), state["weight"], state["bias"])
        assert row.numbers["score"] == pytest.approx(theirs.item(), abs=1e-5)
    assert len({row.numbers["score"] for row in rows}) > 10
    # The rest equals a run without the predictor.
    unscored = [replace(row, numbers=dict(list(row.numbers.items())[:2])) for row in rows]
    assert unscored == read_rows(whole / "results.csv")
    settings = json.loads((scored / "settings.json").read_text())
    assert settings.pop("predictor") == snapshot.sha256(head(scoring))
    assert settings == json.loads((whole / "settings.json").read_text())


def test_the_report_has_scores_where_rows_have(scored: Path, whole: Path) -> None:
    with_scores, without = (folder / "report.md" for folder in (scored, whole))
    assert "| loss | LAION score | rise | rows |" in with_scores.read_text()
    assert "by LAION's aesthetic predictor" in with_scores.read_text()
    assert len(re.findall(r"^\| 3 \|.*\| \d\.\d{4} \| [+-]\d\.\d{4} \(", with_scores.read_text(), re.MULTILINE)) == 3
    assert "LAION" not in without.read_text()
    assert "score" not in (whole / "results.csv").read_text()
    widths = []
    for path in (with_scores, without):
        with Image.open(path.with_name("steps.png")) as plots:
            widths.append(plots.width)
    assert widths[0] == 1.5 * widths[1]


def test_a_folder_that_was_begun_without_the_predictor_continues_without_it(
    whole: Path, scoring: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(whole)
    (whole / "rows" / "000.csv").unlink()
    monkeypatch.setenv("AESTHETIC_HOME", str(scoring))
    with caplog.at_level(logging.INFO):
        assert main([*ARGUMENTS, f"--outdir={whole}"]) == 0
    assert contents(whole) == before
    assert (
        "was begun without LAION's predictor and continues without it: name another --outdir for scores" in caplog.text
    )


def test_a_folder_that_was_begun_with_the_predictor_needs_the_same_one(
    scoring: Path, scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(scored)
    (scored / "rows" / "001-fantasy.csv").unlink()
    assert "was begun with other settings (predictor '" in complaint(capsys, *ARGUMENTS, f"--outdir={scored}")
    monkeypatch.setenv("AESTHETIC_HOME", str(scoring))
    assert main([*ARGUMENTS, f"--outdir={scored}"]) == 0
    assert contents(scored) == before


def test_a_blocked_image_has_no_score(scoring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(scoring))
    answers = iter([True])
    monkeypatch.setattr(sampling, "is_unsafe", lambda *_: next(answers, False))
    assert main([*ARGUMENTS, "--outdir=out"]) == 0
    rows = read_rows(Path("out/results.csv"))
    assert [math.isnan(row.numbers["score"]) for row in rows] == [not row.image for row in rows]
    assert "nan" not in Path("out/report.md").read_text()


def test_the_predictor_does_not_score_for_another_clip(
    scoring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(scoring))
    path = sd2.write(scoring, tmp_path / "second")
    embedding.save_aesthetic(tmp_path / "mine.safetensors", torch.randn(1, sd2.DIM), {})
    plans = [
        evaluate.prepare(
            model=model, prompts=["the cat"], aesthetics=aesthetics, steps=[0, 1], seeds=1, drawing={"seed": 1}
        )
        for model, aesthetics in (
            (None, {"fantasy": {"aesthetic_embedding": "fantasy"}}),
            (str(path), {"mine": {"aesthetic_embedding_file": tmp_path / "mine.safetensors"}}),
        )
    ]
    assert [[one.column for one in plan.judge.measures][2:] for plan in plans] == [["score"], []]
    assert "predictor" not in plans[1].settings()


def test_a_damaged_predictor_is_refused_before_the_model_is_loaded(
    scoring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(Service, "load")
    damaged = shutil.copytree(scoring, tmp_path / "damaged", symlinks=True)
    head(damaged).write_bytes(head(damaged).read_bytes()[:-100])
    monkeypatch.setenv("AESTHETIC_HOME", str(damaged))
    message = complaint(capsys, *ARGUMENTS, "--outdir=out")
    assert "linear.pth was not written by torch.save, or is damaged" in message
    assert not Path("out").exists()


def test_each_image_is_the_one_that_its_recipe_draws(whole: Path, service: Service) -> None:
    for row in read_rows(whole / "results.csv")[::5]:
        path = whole / "pictures" / row.image
        request = read_recipe(path).rebuild()
        assert (request.prompt, request.aesthetic_steps, request.seed) == (row.prompt, row.steps, row.seed)
        [(alone, _)] = service.draw(request).images
        with Image.open(path) as image:
            assert image.tobytes() == alone.tobytes()


def test_one_personalization_serves_all_steps_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    personalizer = Personalizer.__call__

    def counted(self: Personalizer, *inputs: Any, steps: int, lr: float) -> Iterator[Any]:
        runs.append(steps)
        yield from personalizer(self, *inputs, steps=steps, lr=lr)

    monkeypatch.setattr(Personalizer, "__call__", counted)
    assert main([*ARGUMENTS, "--outdir=out"]) == 0
    assert runs == [3] * 2 * 2


def test_a_stopped_run_resumes_to_the_same_files(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done, begun = evaluate._work, []

    def stopped(plan: evaluate.Plan, service: Service, job: evaluate.Job) -> Any:
        begun.append(job.name)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return done(plan, service, job)

    monkeypatch.setattr(evaluate, "_work", stopped)
    assert main([*ARGUMENTS, "--outdir=out"]) == 130
    assert "the same command continues in out" in capsys.readouterr().err
    assert main([*ARGUMENTS, "--outdir=out"]) == 0
    assert begun == ["000", "001", "000-fantasy", "001-fantasy", "001-fantasy", "000-gloomcore", "001-gloomcore"]
    assert contents(Path("out")) == contents(whole)


def test_a_truncated_row_file_is_redone(whole: Path) -> None:
    before = contents(whole)
    for name, size in (("000.csv", -40), ("001-fantasy.csv", 0)):
        path = whole / "rows" / name
        os.truncate(path, path.stat().st_size + size if size else 0)
    assert main([*ARGUMENTS, f"--outdir={whole}"]) == 0
    assert contents(whole) == before


def test_a_second_evaluation_in_the_same_folder_is_refused(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(whole / "rows" / "lock"):
        assert "another process is at work in " in complaint(capsys, *ARGUMENTS, f"--outdir={whole}")
    assert main([*ARGUMENTS, f"--outdir={whole}"]) == 0


def test_a_finished_run_reports_again_without_a_model(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(whole)
    (whole / "report.md").unlink()
    monkeypatch.delattr(Service, "load")
    assert main([*ARGUMENTS, f"--outdir={whole}"]) == 0
    assert contents(whole) == before


def test_on_ray_it_writes_the_same_files(whole: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "work", RAY)
    assert main([*ARGUMENTS, "--outdir=out", f"--address={address}", "--workers=1"]) == 0
    assert contents(Path("out")) == contents(whole)


def test_missing_images_are_counted_and_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True])
    monkeypatch.setattr(sampling, "is_unsafe", lambda *_: next(answers, False))
    assert main([*ARGUMENTS, "--outdir=out"]) == 0
    lost = [row for row in read_rows(Path("out/results.csv")) if not row.image]
    assert [(row.prompt, row.aesthetic, row.steps, row.seed) for row in lost] == [
        ("the cat", name, 0, 42) for name in ("fantasy", "gloomcore")
    ]
    assert math.isnan(lost[0].numbers["similarity_to_aesthetic"])
    assert "2 of 24 rows have no image" in Path("out/report.md").read_text()


def test_a_diverging_personalization_loses_only_its_own_rows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    personalizer, runs = Personalizer.__call__, iter([1])

    def diverging(self: Personalizer, *inputs: Any, **options: Any) -> Iterator[Any]:
        is_first = next(runs, None)
        for step in personalizer(self, *inputs, **options):
            yield replace(step, conditioning=step.conditioning * math.nan) if is_first and step.index else step

    monkeypatch.setattr(Personalizer, "__call__", diverging)
    assert main([*ARGUMENTS, "--outdir=out"]) == 0
    assert "000-fantasy: the personalization diverged" in caplog.text
    lost = {(row.prompt, row.aesthetic) for row in read_rows(Path("out/results.csv")) if not row.image}
    assert lost == {("the cat", "fantasy")}


def test_models_in_single_files_are_told_apart() -> None:
    folder = Snapshot(
        name="a", revision="local", bundled=False, clip_space=None, folder=Path("base"), clip=None, file=Path("a")
    )
    plans = [
        evaluate.Plan(
            snapshot=snapshot,
            prompts=(),
            aesthetics={},
            steps=(),
            seeds=1,
            drawing={},
            judge=clip_judge(None),
        )
        for snapshot in (folder, replace(folder, file=Path("b")))
    ]
    assert plans[0].settings()["model"] != plans[1].settings()["model"]


def test_a_changed_setting_is_refused(whole: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = contents(whole)
    for changed, message in (
        (["--seeds=3"], "(seeds 2, now 3)"),
        (["--steps", "0", "1"], "(steps "),
        (["--guidance_scale=2"], "(guidance_scale 7.5, now 2.0)"),
        (["--aesthetics", "fantasy"], "(aesthetics "),
        ([f"--prompts={PROMPTS}"], "(prompts "),
    ):
        assert message in complaint(capsys, *ARGUMENTS, f"--outdir={whole}", *changed)
    assert contents(whole) == before
    assert "holds something else" in complaint(capsys, *ARGUMENTS, f"--outdir={tmp_path}")


def test_bad_arguments_are_refused_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(Service, "load")
    Path("long.txt").write_text("x" * 2001)
    Path("comments.txt").write_text("# nothing\n")
    embedding.save_aesthetic(Path("wide.safetensors"), torch.ones(1, 25), {})
    embedding.save_aesthetic(Path("fantasy.pt"), torch.ones(1, 24), {})
    Path("settings.json").write_text("{")
    for arguments, message in (
        (["--prompts=nothing.txt"], "--prompts nothing.txt can't be read"),
        (["--prompts=comments.txt"], "--prompts comments.txt holds no prompt"),
        (["--prompts=long.txt"], "prompt must have at most 2000 characters"),
        (["--aesthetics", "nonsense"], "there is no aesthetic 'nonsense'"),
        (["--aesthetics", "wide.safetensors"], "has 25 dimensions"),
        (["--aesthetics", "fantasy", "fantasy.pt"], "two of the same name"),
        (["--steps", "1", "2"], "--steps takes 0"),
        (["--steps", "0"], "--steps takes 0"),
        (["--steps", "0", "101"], "aesthetic_sweep takes 1 to 12 rising numbers of steps up to 100"),
        (["--seeds=0"], "--seeds must be 1 to 8, not 0"),
        (["--seeds=9"], "--seeds must be 1 to 8, not 9"),
        (["--seed=4294967295"], "seed must be at most"),
        (["--width=100"], "width must be one of"),
        (["--ckpt=nonsense"], "there is no model 'nonsense'"),
        (["--outdir=."], "settings.json is damaged"),
    ):
        assert message in complaint(capsys, *ARGUMENTS, "--outdir=out", *arguments), arguments
    assert not Path("out").exists()
    for name in ("evaluate", "cluster"):
        module = {"evaluate": "matplotlib", "cluster": "ray"}[name]
        monkeypatch.setattr(importlib.util, "find_spec", lambda one, module=module: None if one == module else one)
        assert f"python -m pip install -r requirements-{name}.txt" in complaint(capsys, *ARGUMENTS)


def test_all_aesthetics_that_fit_are_the_default() -> None:
    drawing = {"seed": 1, "width": 128, "height": 128}
    plan = evaluate.prepare(model=None, prompts=["the cat"], aesthetics=None, steps=[3, 0], seeds=1, drawing=drawing)
    assert len(plan.aesthetics) == 8
    assert plan.steps == (0, 3)
    assert len(plan.jobs()) == 9


def test_the_bundled_prompts_grow_longer() -> None:
    prompts = [line for line in PROMPTS.read_text().splitlines() if not line.startswith("#")]
    assert len(set(prompts)) == len(prompts) == 25
    assert len(prompts[0].split()) <= 2
    assert max(len(prompt.split()) for prompt in prompts) < 40  # CLIP reads 75 tokens
