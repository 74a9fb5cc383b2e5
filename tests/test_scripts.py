"""The programs in script/, run as users run them."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
from PIL import Image

from aesthetic.errors import SettingError
from script import schema
from tests.images.test_user_images import encoded
from tests.serving import call, ready
from tests.snapshot import MODEL, ROOT

SMALL = ["-i", "width=128", "-i", "height=128", "-i", "num_inference_steps=3"]


def run(
    command: str | Path, folder: Path, home: Path, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, or a link to one, in `folder` with these settings only."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AESTHETIC_", "TQDM_"))}
    return subprocess.run(
        [ROOT / "script" / command, *arguments],
        cwd=folder,
        env={**environment, "AESTHETIC_HOME": str(home), **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_downloads_it_draws_with_the_demo_and_says_so(tmp_path: Path) -> None:
    """The home has only what is committed, since the checkout of this test may have downloads."""
    for name in ("weights/manifest.json", "embeddings/index.json"):
        (tmp_path / "home" / name).parent.mkdir(parents=True)
        (tmp_path / "home" / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "home" / "weights" / "demo").symlink_to(ROOT / "weights" / "demo")
    aesthetic = Path("embeddings", "gold.safetensors")
    (tmp_path / "home" / aesthetic).symlink_to(ROOT / aesthetic)
    answer = run("predict", tmp_path, tmp_path / "home", "-i", "prompt=a castle", "-i", "aesthetic_steps=5", *SMALL)
    assert answer.returncode == 0, answer.stderr
    assert "Stable Diffusion has not been downloaded (script/download-weights does it)" in answer.stderr
    assert "Similarity to gold: " in answer.stderr
    assert (tmp_path / "output.0.png").is_file()


def test_an_unknown_model_is_refused_at_once(tmp_path: Path, home: Path) -> None:
    for command, name in (("predict", "aesthetic"), ("serve", "script/serve")):
        answer = run(command, tmp_path, home, PORT="0", AESTHETIC_MODEL="nonsense")
        assert answer.returncode == 1
        assert f"{name}: there is no model 'nonsense'" in answer.stderr
        assert "Traceback" not in answer.stderr


def test_a_wrong_home_is_refused(tmp_path: Path) -> None:
    for command, name in (("predict", "aesthetic"), ("serve", "script/serve")):
        answer = run(command, tmp_path, tmp_path / "nowhere", PORT="0")
        assert answer.returncode == 1
        assert f"{name}: there is no {tmp_path}/nowhere/weights/manifest.json" in answer.stderr
        assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("port", ["abc", "99999999", "taken"])
def test_an_unusable_port_is_refused(tmp_path: Path, home: Path, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if port == "taken":
            port = str(taken.getsockname()[1])
        answer = run("serve", tmp_path, home, PORT=port)
    assert answer.returncode == 1
    assert f"PORT={port} can't be used" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_serve_serves_until_it_is_stopped(tmp_path: Path, home: Path) -> None:
    environment = {**os.environ, "AESTHETIC_HOME": str(home), "PORT": "0"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([ROOT / "script" / "serve"], cwd=tmp_path, env=environment, stderr=log) as process,
    ):
        address = ready(tmp_path / "log")
        assert call(f"{address}/openapi.json")[0] == 200
        process.terminate()
        assert process.wait(timeout=30) == 0
    with pytest.raises(urllib.error.URLError, match="refused"):
        call(f"{address}/health-check")


def test_predict_takes_relative_paths_from_the_users_folder_and_is_found_by_a_link(tmp_path: Path, home: Path) -> None:
    for name in ("weights", "embeddings"):
        (tmp_path / "home" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "home" / name).symlink_to(home / name)
    (tmp_path / "model").symlink_to(home / "weights" / MODEL)
    (tmp_path / "mine.png").write_bytes(encoded())
    (tmp_path / "draw").symlink_to(ROOT / "script" / "predict")
    (tmp_path / "script").mkdir()  # must not shadow the checkout's
    (tmp_path / "script" / "__init__.py").write_text("raise RuntimeError")
    inputs = ["-i", "prompt=the cat = the dog", "-i", "aesthetic_images=@mine.png", "-i", "num_outputs=2", *SMALL]
    answer = run(tmp_path / "draw", tmp_path, Path("home"), *inputs, AESTHETIC_MODEL="model")
    assert answer.returncode == 0, answer.stderr
    paths = [tmp_path / "output.0.png", tmp_path / "output.1.png"]
    assert answer.stdout.split() == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (128, 128)
            assert image.info["parameters"].startswith("the cat = the dog\n")
    for line in (f"Model: {MODEL} (revision local)", "Seed: ", 'Metrics: {"seed": '):
        assert line in answer.stderr
    assert "%|" not in answer.stderr  # progress bars are for terminals


def test_a_read_only_checkout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "HERE", tmp_path / "script")
    monkeypatch.setattr(schema, "openapi_schema", dict)
    (tmp_path / ".cog").write_text("no folder")
    with pytest.raises(SettingError, match=r"Cog reads the inputs from .*, which can't be written"):
        schema.write()
    (tmp_path / ".cog").unlink()
    schema.write()
    before = (tmp_path / ".cog").stat().st_mtime_ns
    schema.write()
    assert (tmp_path / ".cog").stat().st_mtime_ns == before  # an equal file is not written again


FAKE = """#!/bin/sh
exec {python} -c "import sys; sys.version_info = {version}; $2"
"""


@pytest.mark.parametrize(
    ("versions", "found"), [(["3.13", "3.12"], "python3.12"), (["3.10", "3.14"], ""), (["3.13"], "python3.13")]
)
def test_the_scripts_find_a_supported_python(tmp_path: Path, versions: list[str], found: str) -> None:
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
    """Set up the environment of a checkout without requirements; prints the Python that scripts then find."""
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


def test_leftovers_of_older_versions_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".cog/venv/bin").mkdir(parents=True)
    for name in ("pip", "python"):
        (tmp_path / ".cog/venv/bin" / name).symlink_to("/bin/true")
    for name in (".venv/lib", "weights/.partial"):
        (tmp_path / name).mkdir(parents=True)
    assert set_up(tmp_path).returncode == 0
    assert (tmp_path / ".venv/lib").is_dir()  # not made by these scripts
    assert not (tmp_path / "weights/.partial").exists()
    (tmp_path / ".venv/.installed-service").touch()
    assert f"Removing {tmp_path}/.venv" in set_up(tmp_path).stderr
    assert not (tmp_path / ".venv").exists()
