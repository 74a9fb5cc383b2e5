"""aesthetic predict: inputs as text, images in the current folder."""

import errno
import inspect
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aesthetic.cli.main import main
from aesthetic.cli.predict import KINDS, parse_inputs
from aesthetic.embeddings.registry import Registry
from aesthetic.errors import RequestError
from aesthetic.images.metadata import read_recipe
from aesthetic.request import Request
from aesthetic.service import Service
from predict import Predictor
from tests.images.test_user_images import encoded
from tests.snapshot import ROOT

SMALL = ["-i", "width=128", "-i", "height=128", "-i", "num_inference_steps=3", "-i", "aesthetic_steps=2"]


@pytest.fixture(autouse=True)
def _tiny(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_images_are_written_in_the_requested_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    caplog.set_level("INFO")
    inputs = [f"output_format={suffix}", "aesthetic_sweep=0,1", "seed=7"]
    assert main(["predict", *(word for pair in inputs for word in ("-i", pair)), *SMALL]) == 0
    paths = [tmp_path / f"output.{i}.{suffix}" for i in range(3)]
    assert sorted(tmp_path.iterdir()) == paths
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert read_recipe(paths[1]).request["aesthetic_steps"] == 1
    assert '"seed": 7, "blocked": 0, "steps": 1, "drift": 0.' in caplog.text


def test_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.png").write_bytes(encoded())
    assert main(["predict", "-i", "aesthetic_images=@~/mine.png", *SMALL]) == 0
    with Image.open("output.0.png") as image:
        assert '"source": "pictures"' in image.info["aesthetic"]


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("aesthetic_steps=5", 5),
        ("guidance_scale=7.5", 7.5),
        ("disable_safety_checker=True", True),
        ("prompt=5", "5"),
        ("prompt=a=b", "a=b"),
        ("prompt=", ""),
        ("aesthetic_mix=fantasy", "fantasy"),
        ("width=256", 256),
        ("scheduler=DDIM", "DDIM"),
        ("seed=", None),
        ("image=", None),
    ],
)
def test_values_have_the_type_of_their_input(pair: str, value: Any) -> None:
    assert getattr(parse_inputs([pair]), pair.partition("=")[0]) == value


def test_the_last_value_of_a_name_counts() -> None:
    assert parse_inputs(["seed=1", "seed=2"]).seed == 2


def test_it_takes_the_inputs_of_predict_and_their_old_names() -> None:
    assert set(KINDS) - {"ddim_eta"} == set(inspect.signature(Predictor.predict).parameters) - {"self"}
    old = parse_inputs(["n_samples=2", "scale=5", "ddim_steps=20", "plms=false"])
    assert old == Request(num_outputs=2, guidance_scale=5, num_inference_steps=20, scheduler="DDIM")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("nonsense=1", "there is no input 'nonsense'; there are prompt, negative_prompt,"),
        ("prompt", "-i takes NAME=VALUE, not 'prompt'"),
        ("aesthetic_embedding_file=mine.pt", "takes a file, as aesthetic_embedding_file=@FILE, not 'mine.pt'"),
        ("aesthetic_images=@nothing.zip", "aesthetic_images: there is no file nothing.zip"),
        ("aesthetic_images=@.", "aesthetic_images: . is a folder: zip it, or run 'aesthetic embed' on it"),
        ("lora=@.", "lora: . is a folder: give a file in it"),
        (f"image=@{'a' * 5000}", "can't be read: .*File name too long"),
        ("aesthetic_steps=many", "aesthetic_steps must be a whole number, not 'many'"),
        ("height=100", "height must be one of 128, "),
        ("seed=null", "seed must be a whole number, not 'null'"),
        ("guidance_scale=nan", "guidance_scale must be a number, not 'nan'"),
        (f"seed={'[' * 20_000}", r"seed must be a whole number, not '\[\[\["),
    ],
)
def test_bad_inputs_are_named(pair: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_inputs([pair])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("aesthetic_embedding=nonsense", "there is no aesthetic 'nonsense'; this model can follow sac_8plus"),
        ("aesthetic_images=@text", "aesthetic_images: the file is neither an image"),
        ("image=@text", "image: the file is not an image"),
        ("width=1", "width must be one of 128"),
    ],
)
def test_bad_inputs_are_refused_without_torch(tmp_path: Path, pair: str, message: str) -> None:
    (tmp_path / "text").write_text("text")
    program = "import sys; from aesthetic.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", program, "predict", "-i", pair],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "1 False\n"
    assert answer.stderr.startswith(f"aesthetic: {message}")


def test_a_missing_default_is_refused_before_the_model_is_loaded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "embeddings", tmp_path / "embeddings")
    (tmp_path / "weights").symlink_to(home / "weights")
    registry = Registry(tmp_path / "embeddings")
    registry.path("sac_8plus").unlink()
    monkeypatch.setenv("AESTHETIC_HOME", str(tmp_path))
    monkeypatch.setattr(Service, "load", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    assert main(["predict"]) == 1
    assert "the aesthetic sac_8plus has not been downloaded" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("/proc")
    assert main(["predict"]) == 1
    assert "images are written to the current folder, and /proc can't be written to" in capsys.readouterr().err


def test_a_full_disk_names_the_image_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "output.0.png").write_bytes(b"the last one")

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert main(["predict", *SMALL]) == 1
    assert capsys.readouterr().err.endswith(f"No space left on device: '{tmp_path}/output.0.png'\n")
    assert [path.name for path in tmp_path.iterdir()] == ["output.0.png"]
    assert (tmp_path / "output.0.png").read_bytes() == b"the last one"


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aesthetic", "predict", "-i", "num_inference_steps=500"]
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    with subprocess.Popen(
        command, env={**environment, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("Seed: "))
        process.send_signal(signal.SIGINT)
        assert not [line for line in process.stderr if "Traceback" in line or "%|" in line]
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())
