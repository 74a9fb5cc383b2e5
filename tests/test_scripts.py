"""What people type."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aesthetic.errors import SettingError
from aesthetic.images.metadata import read_recipe
from script import client, schema
from tests.images.test_user_images import encoded
from tests.snapshot import MODEL, ROOT
from tests.test_server import wait_until_idle

SMALL = ["-i", "width=128", "-i", "height=128", "-i", "num_inference_steps=3"]


def run(command: str, folder: Path, home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """What a script answers that is run in `folder`, with no settings but these."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AESTHETIC_")}
    return subprocess.run(
        [ROOT / "script" / command, *arguments],
        cwd=folder,
        env={**environment, "AESTHETIC_HOME": str(home), **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_predict_draws_and_says_so(tmp_path: Path, home: Path) -> None:
    answer = run("predict", tmp_path, home, "-i", "prompt=the cat = the dog", "-i", "num_outputs=2", *SMALL)
    assert answer.returncode == 0, answer.stderr
    paths = [tmp_path / "output.0.png", tmp_path / "output.1.png"]
    assert answer.stdout.split() == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (128, 128)
            assert image.info["parameters"].startswith("the cat = the dog\n")
    for line in ("Model: stable-diffusion-v1-5", "Seed: ", "Personalizing: 100%", "Denoising 2 of 2: 100%"):
        assert line in answer.stderr


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_predict_writes_what_was_asked_for(tmp_path: Path, home: Path, suffix: str) -> None:
    answer = run("predict", tmp_path, home, "-i", f"output_format={suffix}", "-i", "aesthetic_sweep=0,1", *SMALL)
    assert answer.returncode == 0, answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"output.{i}.{suffix}" for i in range(3)]
    assert read_recipe(tmp_path / f"output.1.{suffix}").request["aesthetic_steps"] == 1


def test_predict_sends_files(tmp_path: Path, home: Path) -> None:
    (tmp_path / "mine.png").write_bytes(encoded())
    answer = run("predict", tmp_path, home, "-i", "aesthetic_images=@mine.png", *SMALL)
    assert answer.returncode == 0, answer.stderr
    with Image.open(tmp_path / "output.0.png") as image:
        assert '"source": "pictures"' in image.info["aesthetic"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "nonsense=1"], "there is no input 'nonsense'; there are prompt, negative_prompt,"),
        (["-i", "prompt"], "-i takes NAME=VALUE, not 'prompt'"),
        (["-i", "aesthetic_embedding_file=mine.pt"], "takes a file, as aesthetic_embedding_file=@mine.pt"),
        (["-i", "aesthetic_images=@nothing.zip"], "aesthetic_images: there is no file"),
        (["-i", "aesthetic_steps=many", "-i", "seed=-1"], "aesthetic_steps must be a whole number, not 'many'"),
        (["-i", "height=100"], "height must be one of 128, "),
        (["-i", "aesthetic_embedding=nonsense"], "aesthetic_embedding must be one of sac_8plus, "),
        (["-i", "seed=null"], "seed must be a whole number, not 'null'"),
        (["-i", f"seed={'[' * 20_000}"], "seed must be a whole number, not '[[["),
        (["-i", f"image=@{'a' * 5000}"], "can't be read: File name too long"),
        (["-i", "width=1024", "-i", "height=1024"], "width × height must be at most 786432 pixels"),
    ],
)
def test_predict_says_what_is_wrong(tmp_path: Path, home: Path, arguments: list[str], message: str) -> None:
    answer = run("predict", tmp_path, home, *arguments)
    assert answer.returncode == 1
    assert message in answer.stderr
    assert "Model: " not in answer.stderr  # which takes its time
    assert not list(tmp_path.iterdir())


def test_without_downloads_it_draws_with_the_demo_and_says_so(tmp_path: Path) -> None:
    """A checkout without downloads, told apart from one with them by a home that has only what is committed."""
    for name in ("weights/manifest.json", "embeddings/index.json"):
        (tmp_path / "home" / name).parent.mkdir(parents=True)
        (tmp_path / "home" / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "home" / "weights" / "demo").symlink_to(ROOT / "weights" / "demo")
    aesthetic = Path("embeddings", "gold.safetensors")
    (tmp_path / "home" / aesthetic).symlink_to(ROOT / aesthetic)
    answer = run("predict", tmp_path, tmp_path / "home", "-i", "prompt=a castle", "-i", "aesthetic_steps=5", *SMALL)
    assert answer.returncode == 0, answer.stderr
    assert "No model has been downloaded: demo, small and part of the checkout, draws." in answer.stderr
    assert "Similarity to gold: " in answer.stderr
    assert (tmp_path / "output.0.png").is_file()


def test_a_model_that_is_not_there_says_so_at_once(tmp_path: Path, home: Path) -> None:
    for command in ("predict", "serve"):
        answer = run(command, tmp_path, home, PORT="0", AESTHETIC_MODEL="nonsense")
        assert answer.returncode == 1
        assert f"script/{command}: there is no model 'nonsense'" in answer.stderr
        assert "Traceback" not in answer.stderr


def test_a_wrong_home_says_so_and_draws_nothing(tmp_path: Path) -> None:
    for command in ("predict", "serve"):
        answer = run(command, tmp_path, tmp_path / "nowhere", PORT="0")
        assert answer.returncode == 1
        assert f"script/{command}: there is no {tmp_path}/nowhere/weights/manifest.json" in answer.stderr
        assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("port", ["abc", "99999999", "taken"])
def test_a_port_that_cannot_be_used_says_so(tmp_path: Path, home: Path, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if port == "taken":
            port = str(taken.getsockname()[1])
        answer = run("serve", tmp_path, home, PORT=port)
    assert answer.returncode == 1
    assert f"PORT={port} can't be used" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_predict_takes_its_server_along_when_it_is_ended(tmp_path: Path, home: Path) -> None:
    environment = {**os.environ, "AESTHETIC_HOME": str(home), "TMPDIR": str(tmp_path)}
    command = [str(ROOT / "script" / "predict"), "-i", "num_inference_steps=500"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "Seed:" in line)
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert process.stderr.read() is not None  # the end of it: nobody holds it open any more
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_serve_serves_until_it_is_stopped(home: Path, stop: signal.Signals) -> None:
    environment = {**os.environ, "AESTHETIC_HOME": str(home), "PORT": "0"}
    with subprocess.Popen(
        [ROOT / "script" / "serve"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr)
        port = next(line.rpartition(":")[2].strip() for line in lines if "Starting coglet server on" in line)
        next(line for line in lines if "Setup complete, now accepting requests" in line)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health-check") as response:
            assert b"READY" in response.read()
        process.send_signal(stop)
        for _ in lines:
            pass
        assert process.wait(timeout=30) == 0


def test_serve_can_be_stopped_when_nobody_reads_its_log(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    unread, log = os.pipe()
    environment = {**os.environ, "AESTHETIC_HOME": str(home), "PORT": str(port)}
    with subprocess.Popen([ROOT / "script" / "serve"], env=environment, stderr=log) as process:
        wait_until_idle(f"http://127.0.0.1:{port}")
        os.set_blocking(log, False)
        with suppress(BlockingIOError):
            while True:
                os.write(log, b"full")
        os.set_blocking(log, True)  # for the server, too
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        process.terminate()
        assert process.wait(timeout=30) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health-check")
    os.close(unread)
    os.close(log)


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("aesthetic_steps=5", 5),
        ("guidance_scale=7.5", 7.5),
        ("disable_safety_checker=True", True),
        ("plms=false", False),
        ("prompt=5", "5"),
        ("prompt=", ""),
        ("aesthetic_mix=fantasy", "fantasy"),
        ("width=256", 256),
        ("scheduler=DDIM", "DDIM"),
        ("aesthetic_images=http://example.com/a.zip", "http://example.com/a.zip"),
    ],
)
def test_values_have_the_type_of_their_input(pair: str, value: Any) -> None:
    name = pair.partition("=")[0]
    assert client.parse_inputs([pair]) == {name: value}


def test_blank_inputs_are_left_out_where_the_form_may_leave_them_blank() -> None:
    assert client.parse_inputs(["seed=", "aesthetic_embedding=", "image=", "prompt="]) == {"prompt": ""}


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as huge:
        huge.truncate(2**43)
    with pytest.raises(client.RefusedError, match="up to 100 MiB"):
        client.parse_inputs([f"image=@{tmp_path}/huge.png"])


def test_predict_draws_when_nobody_hears_what_it_says(tmp_path: Path, home: Path) -> None:
    unheard, log = os.pipe()
    os.close(unheard)
    environment = {**os.environ, "AESTHETIC_HOME": str(home)}
    command = [str(ROOT / "script" / "predict"), *SMALL]
    assert subprocess.run(command, cwd=tmp_path, env=environment, stderr=log, timeout=60, check=False).returncode == 0
    os.close(log)
    assert (tmp_path / "output.0.png").is_file()


def test_predict_says_why_its_server_did_not_start(tmp_path: Path, home: Path) -> None:
    answer = run("predict", tmp_path, home, AESTHETIC_SPEED="warp")
    assert answer.returncode == 1
    message = "SettingError: AESTHETIC_SPEED must be one of plain, graph, compile, not 'warp'"
    assert f"\n{message}\n" in answer.stderr
    assert "slot" not in answer.stderr  # of which Cog says more than anybody needs


def test_a_picture_that_cannot_be_written_says_so(tmp_path: Path, home: Path) -> None:
    (tmp_path / "output.0.png").mkdir()
    answer = run("predict", tmp_path, home, *SMALL)
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].startswith("script/predict: [Errno 21] Is a directory")


def test_predict_says_before_it_draws_that_no_picture_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "nowhere")
    assert client.main([]) == 1
    assert f"none can be written to {tmp_path}/nowhere" in capsys.readouterr().err


def test_predict_says_how_much_a_request_can_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(80 * 2**20)
    assert client.main(["-i", f"lora=@{tmp_path}/large.safetensors"]) == 1
    assert "Cog takes requests of up to 100 MiB" in capsys.readouterr().err


def test_predict_takes_relative_paths_from_the_users_folder_and_is_found_by_a_link(tmp_path: Path, home: Path) -> None:
    for name in ("weights", "embeddings"):
        (tmp_path / "home" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "home" / name).symlink_to(home / name)
    (tmp_path / "model").symlink_to(home / "weights" / MODEL)
    (tmp_path / "mine.png").write_bytes(encoded())
    (tmp_path / "draw").symlink_to(ROOT / "script" / "predict")
    (tmp_path / "script").mkdir()  # which Python must not take for the checkout's
    (tmp_path / "script" / "__init__.py").write_text("raise RuntimeError")
    answer = subprocess.run(
        ["./draw", "-i", "aesthetic_images=@mine.png", *SMALL],
        cwd=tmp_path,
        env={**os.environ, "AESTHETIC_HOME": "home", "AESTHETIC_MODEL": "model"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert f"Model: {MODEL} (revision local)" in answer.stderr
    assert (tmp_path / "output.0.png").is_file()


def test_a_full_disk_leaves_the_image_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output.0.png").write_bytes(b"the last one")

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        list(client.write_outputs(["data:image/png;base64,AAAA"]))
    assert [path.name for path in tmp_path.iterdir()] == ["output.0.png"]
    assert (tmp_path / "output.0.png").read_bytes() == b"the last one"


def test_a_checkout_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "HERE", tmp_path / "script")
    monkeypatch.setattr(schema, "openapi_schema", dict)
    (tmp_path / ".cog").write_text("no folder")
    with pytest.raises(SettingError, match=r"Cog reads the inputs from .*, which can't be written"):
        schema.write()
    (tmp_path / ".cog").unlink()
    schema.write()
    before = (tmp_path / ".cog").stat().st_mtime_ns
    schema.write()
    assert (tmp_path / ".cog").stat().st_mtime_ns == before  # nothing is written that is there


FAKE = """#!/bin/sh
exec {python} -c "import sys; sys.version_info = {version}; $2"
"""


@pytest.mark.parametrize(
    ("versions", "found"), [(["3.13", "3.12"], "python3.12"), (["3.10", "3.14"], ""), (["3.13"], "python3.13")]
)
def test_the_scripts_take_any_python_that_will_do(tmp_path: Path, versions: list[str], found: str) -> None:
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    for version in versions:
        python = tmp_path / f"python{version}"
        python.write_text(FAKE.format(python=sys.executable, version=tuple(map(int, version.split(".")))))
        python.chmod(0o755)
    answer = subprocess.run(
        [shutil.which("bash") or "", "-c", f"source {ROOT}/script/bootstrap; find_python"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.strip() == found
    assert found or "uv python install 3.11" in answer.stderr


def set_up(root: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Set up the environment of a checkout without requirements; the answer is the Python that scripts then find."""
    (root / "script").mkdir(exist_ok=True)
    shutil.copy(ROOT / "script" / "bootstrap", root / "script")
    (root / "requirements.txt").touch()
    return subprocess.run(
        [
            shutil.which("bash") or "",
            "-euo",
            "pipefail",
            "-c",
            "source script/bootstrap; set_up; python -c ''; type -P python",
        ],
        cwd=root,
        env={"PATH": os.pathsep.join(map(str, [*path, *os.defpath.split(os.pathsep)]))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_environment_is_made_again_when_its_python_has_gone(tmp_path: Path) -> None:
    python = tmp_path / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    python.parent.mkdir()
    base = Path(sys.base_prefix, "bin", python.name)
    python.symlink_to(base)
    venv = tmp_path / ".cog" / "venv"
    for line in ("Making a virtual environment", "", "Making a virtual environment"):
        answer = set_up(tmp_path, python.parent)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip() == str(venv / "bin" / "python")
        assert line in answer.stderr
        assert line or not answer.stderr
        if not line:
            (venv / "bin" / python.name).unlink()
            (venv / "bin" / python.name).symlink_to(tmp_path / "removed")


def test_what_older_versions_left_does_not_get_into_an_image(tmp_path: Path) -> None:
    (tmp_path / ".cog/venv/bin").mkdir(parents=True)
    for name in ("pip", "python"):
        (tmp_path / ".cog/venv/bin" / name).symlink_to("/bin/true")
    for name in (".venv/lib", "weights/.partial"):
        (tmp_path / name).mkdir(parents=True)
    assert set_up(tmp_path).returncode == 0
    assert (tmp_path / ".venv/lib").is_dir()  # somebody else's
    assert not (tmp_path / "weights/.partial").exists()
    (tmp_path / ".venv/.installed-service").touch()
    assert f"Removing {tmp_path}/.venv" in set_up(tmp_path).stderr
    assert not (tmp_path / ".venv").exists()
