"""aesthetic batch on two nodes: the images are those of single predictions, whatever is killed."""

import base64
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aesthetic.cli.main import main
from aesthetic.request import Request
from aesthetic.service import Service
from tests.cluster.nodes import SETTINGS, wait_for, workers
from tests.images.test_user_images import encoded

SMALL: dict[str, Any] = {"width": 128, "height": 128, "scheduler": "DDIM"}
QUICK = {**SMALL, "num_inference_steps": 3, "aesthetic_steps": 3}
URL = "data:image/png;base64," + base64.b64encode(encoded()).decode()
GOOD = [
    {"id": "cat", "prompt": "the cat", "seed": 7},
    {"prompt": "the dog", "seed": 7, "num_outputs": 2, "output_format": "webp"},
    {"prompt": "the cat", "seed": 8, "aesthetic_sweep": "0,2"},
    {"prompt": "the cat", "seed": 9, "image": "photos/start.png", "prompt_strength": 0.9},
    {"prompt": "the cat", "seed": 9, "image": URL, "prompt_strength": 0.9},
    {"prompt": "the cat", "n_samples": 1},
    *({"prompt": "the dog", "seed": seed, "aesthetic_embedding": "fantasy"} for seed in range(8)),
]
IMAGES = 17  # with a sheet
BAD = {
    b'{"prompt": ': "the line is not JSON",
    b"\xff\xfe": "the line is not JSON",
    b"[" * 100_000: "the line is not JSON",
    b"[]": "the line must be a JSON object, not []",
    b'{"id": "cat", "prompt": "x"}': "id cat is that of line 1, too",
    b'{"id": "../x"}': "id must be up to 100 letters",
    b'{"id": "line-1"}': "id must be up to 100 letters",
    b'{"id": 3}': "id must be up to 100 letters",
    b'{"nonsense": 1}': "RequestError: unknown input 'nonsense'",
    b'{"seed": -1}': "RequestError: seed must be 0 to 4294967295, not -1",
    b'{"image": "nowhere.png"}': "RequestError: image: 'nowhere.png' can't be read",
    b'{"image": "../start.png"}': "RequestError: image must be beside the requests, or a URL, not '../start.png'",
    b'{"image": "/etc/passwd"}': "RequestError: image must be beside the requests",
    b'{"image": "file:///etc/passwd"}': "RequestError: image must be a data: or http(s) URL",
    b'{"lora": "requests.jsonl"}': "CheckpointError: lora: ",
}


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path, address: str) -> list[str]:
    """The command, in a folder with its file of requests."""
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/start.png").write_bytes(encoded())
    lines = [json.dumps({**QUICK, **line}).encode() for line in GOOD]
    Path("requests.jsonl").write_bytes(b"\n".join([*lines, b"", *BAD]))
    return ["batch", "requests.jsonl", "--outdir=out", f"--address={address}"]


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]


def drawn() -> dict[str, int]:
    """The rows that are there, with the times at which they were written."""
    return {path.name: path.stat().st_mtime_ns for path in Path("out/rows").glob("[!.]*")}


def check(service: Service, folder: Path) -> None:
    """Every good line has the images of a single prediction, and every bad one its error."""
    found = rows()
    assert len(found) == len(GOOD) + len(BAD)
    for line, row in zip(GOOD, found, strict=False):
        inputs = {**QUICK, **line, "seed": row["seed"]}
        inputs.pop("id", None)
        if "image" in inputs:
            inputs["image"] = Path("photos/start.png")
        folder.mkdir(exist_ok=True)
        paths, result = service.predict(Request.from_inputs(**inputs), folder)
        assert (row["status"], row["error"]) == ("succeeded", None)
        assert [Path(name).name for name in row["outputs"]] == [path.name for path in paths]
        for name, path in zip(row["outputs"], paths, strict=True):
            assert Path("out", name).read_bytes() == path.read_bytes()
        assert row["metrics"]["drift"] == result.metrics["drift"]
    for row, error in zip(found[len(GOOD) :], BAD.values(), strict=True):
        assert row["status"] == "failed"
        assert row["error"].startswith(error)
        assert row["outputs"] == []


def test_what_is_killed_loses_nothing_and_nothing_is_drawn_twice(
    batch: list[str], service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "aesthetic", *batch, "--workers=1"]
    with subprocess.Popen(command, env={**os.environ, **SETTINGS}) as process:
        wait_for(lambda: len(drawn()) > 2)
        process.kill()
    before = drawn()
    assert 2 < len(before) < len(GOOD)
    assert not Path("out/results.jsonl").exists()
    unfinished = "line-6.json" if "line-6.json" in before else next(iter(before))
    Path("out/rows", unfinished).write_bytes(b"")  # as a full disk leaves it
    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill_a_worker, len(before) + 1)
        assert main(batch) == 0
        killing.result()
    check(service, tmp_path / "single")
    assert f"{len(GOOD)} requests succeeded with {IMAGES} images, {len(BAD)} failed" in capsys.readouterr().out
    after = drawn()
    assert {name for name, time in before.items() if after[name] != time} == {unfinished}


def kill_a_worker(rows: int) -> None:
    """In the middle of a batch."""
    wait_for(lambda: len(drawn()) > rows)
    os.kill(workers("MapWorker")[0].pid, signal.SIGKILL)
