"""The evaluation against a server and judges that are fakes: a picture's colour says what is in it."""

import base64
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from aesthetic.request import Request
from weights.training import evaluate, options, predictions, report, results, sheets
from weights.training.evaluate import Job, ResumeError, Settings
from weights.training.predictions import PredictionError
from weights.training.results import Row

STYLES = ("flat", "glossy", "ink", "neon")
SUBJECTS = tuple(f"thing{i}" for i in range(8))
QUICK = Settings(outputs=2, inference_steps=3, subjects=7)


class FakeJudges:
    """Reads the style in red and the subject in green. Its five likeliest subjects are that one and the first four."""

    styles = STYLES
    subjects = SUBJECTS
    prompts = SUBJECTS[5:7]
    captions = {name: f"a {name}" for name in SUBJECTS}  # noqa: RUF012
    style_phrases = {"flat": "", "glossy": "glossy", "ink": "an ink drawing", "neon": "in neon"}  # noqa: RUF012
    accuracy = {"styles": 0.987, "subjects_top5": 0.9}  # noqa: RUF012

    def __init__(self) -> None:
        self.asking = threading.Lock()

    def style_probabilities(self, pictures: Tensor, /) -> Tensor:  # noqa: D102
        with self._alone():
            return torch.nn.functional.one_hot(pictures[:, 0, 0, 0].long(), len(STYLES)) * 0.6 + 0.1

    def subject_scores(self, pictures: Tensor, /) -> Tensor:  # noqa: D102
        assert pictures.dtype == torch.uint8
        with self._alone():
            found = torch.nn.functional.one_hot(pictures[:, 1, 0, 0].long(), len(SUBJECTS))
            return found * 10.0 - torch.arange(float(len(SUBJECTS)))

    def _alone(self) -> threading.Lock:
        assert not self.asking.locked(), "the judges are asked by two threads at once"
        time.sleep(0.001)
        return self.asking


@dataclass
class FakeServer:
    """Draws as a good model would: the words' style, or the aesthetic's from 3 steps on; at 20 the subject is lost."""

    model: str = "demo"
    busy: int = 0  # how many answers are 409 first
    refuse: Callable[[dict[str, Any]], str | None] = lambda inputs: None
    asked: list[dict[str, Any]] = field(default_factory=list)
    drawing: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """The status and the JSON."""
        if self.busy:
            self.busy -= 1
            return 409, {"detail": "Already running a prediction"}
        assert self.drawing.acquire(blocking=False), "two predictions at once"
        try:
            inputs = json.loads(body)["input"]
            files = {name: Path(name) for name in ("image", "mask", "lora") if name in inputs}  # which Cog decodes
            Request.from_inputs(**inputs | files)  # the service knows all of the names, and takes the values
            self.asked.append(inputs)
            if (message := self.refuse(inputs)) is not None:
                return 200, {"status": "failed", "error": message, "output": None}
            return 200, {"status": "succeeded", "output": self.draw(inputs)}
        finally:
            self.drawing.release()

    def draw(self, inputs: dict[str, Any]) -> list[str]:
        """Data URLs."""
        words, steps = inputs["prompt"], inputs["aesthetic_steps"]
        style = next((name for name, phrase in FakeJudges.style_phrases.items() if phrase and phrase in words), "flat")
        if steps >= 3:
            style = name if (name := inputs.get("aesthetic_embedding")) in STYLES else "flat"
        subject = int(found[1]) if (found := re.search(r"thing(\d)", words)) else 0
        color = (STYLES.index(style), 7 if steps == 20 else subject, 0)
        return [_data_url(Image.new("RGB", (8, 8), color), self.model) for _ in range(inputs.get("num_outputs", 1))]


def _data_url(picture: Image.Image, model: str) -> str:
    texts, file = PngImagePlugin.PngInfo(), io.BytesIO()
    texts.add_text("aesthetic", json.dumps({"model": {"name": model, "revision": "1"}}))
    picture.save(file, "PNG", pnginfo=texts)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture
def serve() -> Iterator[Callable[[FakeServer], str]]:
    """Starts servers, which gives their addresses, and stops them all at the end."""
    running = []

    def start(fake: FakeServer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/predictions"
                status, answer = fake.answer(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> FakeJudges:
    fake = FakeJudges()
    for module in (evaluate, sheets):
        monkeypatch.setattr(module.Judges, "load", lambda folder: fake)
    return fake


def row(**values: Any) -> Row:
    plain = Row(
        part="steps",
        subject="castle",
        style="ink",
        steps=0,
        seed=0,
        style_probability=0.1,
        style_top1=False,
        subject_top5=True,
    )
    return replace(plain, **values)


def test_the_plan_has_every_prediction_once(judges: FakeJudges) -> None:
    jobs = list(evaluate.plan(judges, QUICK))
    assert len(set(jobs)) == len(jobs)
    assert Counter(job.part for job in jobs) == {"subjects": 7, "styles": 2 * 4, "steps": 2 * (1 + 2 * 6)}
    assert {job.prompt for job in jobs if job.part == "styles" and job.subject == "thing5"} == {
        "a thing5",
        "a thing5, glossy",
        "a thing5, an ink drawing",
        "a thing5, in neon",
    }
    assert {job.styles for job in jobs if job.part == "steps" and job.steps == 0} == {("ink", "neon")}


def test_a_job_asks_for_what_it_says() -> None:
    job = Job(part="steps", subject="cat", prompt="a cat", outputs=4, styles=("ink",), aesthetic="ink", steps=5)
    assert evaluate.inputs(job, Settings(size=256)) == {
        "prompt": "a cat",
        "aesthetic_embedding": "ink",
        "aesthetic_steps": 5,
        "num_outputs": 4,
        "seed": 0,
        "num_inference_steps": 20,
        "scheduler": "DPMSolverMultistep",
        "width": 256,
        "height": 256,
    }


def test_servers_share_the_work_and_the_report_is_of_all(
    serve: Callable[[FakeServer], str],
    judges: FakeJudges,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    servers = [FakeServer(busy=3), FakeServer()]
    flags = [word for server in servers for word in ("--server", serve(server))]
    flags += ["--out", str(tmp_path), "--outputs", "2", "--subjects", "7", "--inference-steps", "3"]
    assert evaluate.main(flags) == 0
    jobs = list(evaluate.plan(judges, QUICK))
    asked = [inputs for server in servers for inputs in server.asked]
    key = json.dumps
    assert sorted(map(key, asked)) == sorted(key(evaluate.inputs(job, QUICK)) for job in jobs)
    assert all(server.asked for server in servers)
    rows = results.read(tmp_path / "results.csv")
    assert Counter(row.key for row in rows) == {key: job.outputs for job in jobs for key in job.keys}
    assert all(row.style_top1 == (row.steps >= 3) for row in rows if row.part == "steps")
    assert all(row.subject_top5 == (row.steps < 20) for row in rows)
    assert {row.style_probability for row in rows if row.part == "steps" and row.steps >= 3} == {0.7}
    text = (tmp_path / "report.md").read_text()
    assert text in capsys.readouterr().out
    assert "Model: demo 1." in text
    assert "| 5 | 70.0 ± 0.0 | 60.0 ± 0.0 | 100.0 ± 0.0 | 0.0 ± 0.0 |" in text
    assert "at most 20 of subjects lost: 3, 5, 10 steps." in text
    with Image.open(tmp_path / "steps.png") as plot:
        assert plot.size == (800, 600)


def test_what_is_there_is_not_drawn_again(
    serve: Callable[[FakeServer], str], judges: FakeJudges, tmp_path: Path
) -> None:
    server = FakeServer()
    address, path = serve(server), tmp_path / "results.csv"
    evaluate.evaluate(judges, [address], tmp_path, QUICK, ("subjects", "styles"))
    assert len(server.asked) == 15
    whole = results.read(path)
    path.write_text(path.read_text()[:-10])  # the last job's second row is cut short
    evaluate.evaluate(judges, [address], tmp_path, QUICK, ("styles",))
    assert len(server.asked) == 16
    assert server.asked[-1] == server.asked[-2]
    assert results.read(path) == whole


def test_a_run_goes_on_as_it_began(serve: Callable[[FakeServer], str], judges: FakeJudges, tmp_path: Path) -> None:
    evaluate.evaluate(judges, [serve(FakeServer())], tmp_path, QUICK, ("subjects",))
    with pytest.raises(ResumeError, match=r"was begun with the settings .* give another --out"):
        evaluate.evaluate(judges, ["nowhere"], tmp_path, Settings(outputs=3))
    with pytest.raises(ResumeError, match="begun with the model 'demo 1', and a server has 'noise 1'"):
        evaluate.evaluate(judges, [serve(FakeServer(model="noise"))], tmp_path, QUICK)
    assert len(results.read(tmp_path / "results.csv")) == 7


def test_a_failure_stops_the_run_with_the_servers_words(
    serve: Callable[[FakeServer], str], judges: FakeJudges, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    willing = FakeServer()
    server = FakeServer(refuse=lambda inputs: "there is no ink" if inputs.get("aesthetic_steps") else None)
    flags = ["--outputs", "2", "--subjects", "7"]
    assert evaluate.main(["--server", serve(willing), "--out", str(tmp_path / "whole"), *flags]) == 0
    assert evaluate.main(["--server", serve(server), "--out", str(tmp_path), *flags]) == 1
    assert "there is no ink" in capsys.readouterr().err
    assert len(server.asked) < len(willing.asked)  # the first with steps is the last, but for some under way
    assert not (tmp_path / "report.md").exists()


def test_a_picture_that_is_missing_is_a_failure(judges: FakeJudges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "predict", lambda server, inputs: [Image.new("RGB", (8, 8))])
    job = Job(part="styles", subject="thing5", prompt="a thing5", outputs=2, styles=("flat",))
    with pytest.raises(PredictionError, match="1 pictures of 'a thing5' came, not 2"):
        evaluate.Examiner(judges, QUICK).examine("http://here", job)


def test_errors_name_the_server(serve: Callable[[FakeServer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PredictionError, match=r"http://127.0.0.1:9 can't be reached"):
        predictions.predict("http://127.0.0.1:9", {})
    monkeypatch.setattr(predictions, "PAUSES", (0.01, 0.01))
    with pytest.raises(PredictionError, match="has been busy"):
        predictions.predict(serve(FakeServer(busy=9)), {})


@pytest.mark.parametrize(("told_apart", "expected"), [(8, False), (3, True)])
def test_a_subject_is_sought_among_those_told_apart(judges: FakeJudges, told_apart: int, expected: bool) -> None:
    examiner = evaluate.Examiner(judges, replace(QUICK, subjects=told_apart))
    scores = torch.tensor([9.0, 8, 7, 6, 5, 0, 4, 3])
    assert examiner.is_known("thing5", scores) == expected  # of 3 and the prompts, there are but five


def test_intervals() -> None:
    assert report.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert report.wilson(10, 10)[1] == pytest.approx(1)
    mean = report.Mean.of([10, 20, 30])  # standard deviation 10; 1.96 × 10 / √3
    assert mean.half == pytest.approx(11.316, abs=1e-3)
    assert [str(report.Mean.of(values)) for values in ([10, 20, 30], [5], [])] == ["20.0 ± 11.3", "5.0", "–"]


def test_prompts_count_alike_whatever_they_have_of_pictures() -> None:
    rows = [row(style_probability=p) for p in (0.2, 0.4)] + [row(subject="cat", style_probability=0.9)]
    assert report.by_prompt(rows, report.style) == {"castle": pytest.approx(30), "cat": pytest.approx(90)}


def test_the_tables_say_what_the_rows_do(tmp_path: Path) -> None:
    rows = [row(subject=name, subject_top5=name != "cat") for name in ("castle", "cat", "car")]
    rows += [row(subject="cat", steps=5, style_probability=0.9, subject_top5=False)]
    rows += [row(subject="castle", steps=5, style_probability=0.5), row(subject="car", steps=5, style_probability=0.4)]
    rows += [
        row(part="subjects", style="", style_probability=None, style_top1=None, subject_top5=known)
        for known in (True, True, True, True, False)
    ]
    rows += [row(part="styles", style_probability=p, style_top1=p > 0.5) for p in (0.8, 0.4)]
    results.append(tmp_path / "results.csv", rows)
    assert results.read(tmp_path / "results.csv") == rows
    (tmp_path / "run.json").write_text(
        json.dumps({"judges": {"styles": 0.987}, "settings": {"outputs": 4, "size": None}, "model": "demo 1"})
    )
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "Settings: outputs 4." in text
    assert "| styles | 98.7 |" in text
    assert "4 of 5 pictures: 80.0 % (95 % interval 37.6 to 96.4). At least 80 % are asked for: met." in text
    assert "Not recognised: castle." in text
    assert "| ink | 2 | 50.0 | 60.0 | 100.0 |" in text
    assert "at least 90 % of pictures: 0 of 1 styles" in text
    # Gains 40, 30, 80: mean 50, deviation 26.46, 1.96 × 26.46 / √3 = 29.9. Two of three subjects throughout.
    assert "| 0 | 10.0 ± 0.0 |  | 66.7 ± 65.3 |  |" in text
    assert "| 5 | 60.0 ± 29.9 | 50.0 ± 29.9 | 66.7 ± 65.3 | 0.0 ± 0.0 |" in text
    assert "| ink | 10.0 | 60.0 |" in text
    assert "at most 20 of subjects lost: 5 steps." in text


def test_gains_are_of_what_both_have() -> None:
    before = [row(style_probability=0.1), row(subject="cat", style_probability=0.9), row(style="neon")]
    after = [row(steps=5, style_probability=0.4), row(subject="car", steps=5)]
    assert report.change(before, after, report.style).value == pytest.approx(30)
    assert str(report.change(before, [], report.style)) == "–"


def test_a_report_needs_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 1
    assert "there is no" in capsys.readouterr().err


def test_sheets_are_small_files(
    serve: Callable[[FakeServer], str], judges: FakeJudges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeServer()
    flags = ["--server", serve(server), "-o", str(tmp_path / "new"), "--prompts", "a thing1", "a thing2"]
    assert sheets.main([*flags, "--only", "styles", "steps"]) == 0
    start = 1
    assert len(server.asked) == start + 2 * 4 + 2 * 7
    for name, columns in (("styles", 4), ("steps", 7)):
        with Image.open(tmp_path / "new" / f"{name}.png") as image:
            assert image.mode == "P"
            assert columns * 116 < image.width < columns * 116 + 100
            assert image.height == 26 + 2 * 116
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    fine = sheets.compressed(noise)
    monkeypatch.setattr(sheets, "MOST", len(fine) - 1)
    assert len(sheets.compressed(noise)) < len(fine)


def test_each_way_to_draw_has_its_strip(serve: Callable[[FakeServer], str], judges: FakeJudges, tmp_path: Path) -> None:
    server = FakeServer()
    names = set(options.strips(Image.new("RGB", (512, 512)), b""))
    assert sheets.main(["--server", serve(server), "-o", str(tmp_path), "--only", *names]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == names
    assert all(inputs["seed"] == sheets.SEED and None not in inputs.values() for inputs in server.asked)


def test_a_sheet_has_each_picture_in_its_place() -> None:
    cells = [(row, column) for row in ("cat", "castle") for column in ("ink", "neon")]
    pictures = {cell: Image.new("RGB", (112, 112), (10 * i, 0, 0)) for i, cell in enumerate(cells, start=1)}
    sheet = sheets.sheet(dict(reversed(pictures.items())), cells)
    left = sheet.width - 2 * 116
    found = [sheet.getpixel((left + x * 116 + 50, 26 + y * 116 + 50)) for y in range(2) for x in range(2)]
    assert found == [(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0)]
