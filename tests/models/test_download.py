"""Downloads, against a server on this machine that speaks the hub's protocol, through the command that users run."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aesthetic.errors import CheckpointError
from aesthetic.models import checkpoint, download
from aesthetic.models.manifest import missing, read_manifest
from tests import snapshot
from tests.models.hub import Hub
from tests.snapshot import CLIP, MODEL

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
HEAD = "predictor/head.pth"  # a snapshot of one file, which comes from a URL
AGAIN = "run script/download-weights again: it fetches the files that are still missing"


@pytest.fixture
def hub(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    manifest = read_manifest(home / "weights")
    folders = {str(source.repo_id): home / "weights" / name for name, source in manifest.items()}
    folders |= {"aesthetics": home / "embeddings", "github": tmp_path_factory.mktemp("github")}
    (folders["github"] / "head.pth").write_bytes(b"some numbers")
    revisions = {str(source.repo_id): source.revision for source in manifest.values()}
    with Hub(folders, revisions | {"aesthetics": "main", "github": "main"}) as server:
        yield server


@pytest.fixture
def empty(home: Path, tmp_path: Path, hub: Hub) -> Path:
    """A home with a manifest and an index whose files are not there yet."""
    index = json.loads((home / "embeddings/index.json").read_text())
    for entry in index.values():
        entry["url"] = f"{hub.address}/aesthetics/resolve/main/{entry['file']}"
    snapshot.write_json(tmp_path / "embeddings/index.json", index)
    manifest = json.loads((home / "weights/manifest.json").read_text())
    name, file = HEAD.split("/")
    facts = {"url": f"{hub.address}/github/resolve/main/{file}", "sha256": hashlib.sha256(b"some numbers").hexdigest()}
    manifest[name] = {"repo_id": None, "revision": "main", "license": "MIT", "files": {file: facts}}
    snapshot.write_json(tmp_path / "weights/manifest.json", manifest)
    return tmp_path


def start(home: Path, endpoint: str, *names: str, **settings: str) -> subprocess.Popen[str]:
    """The command, in a process of its own: huggingface_hub reads its settings when it is imported."""
    ours = {"AESTHETIC_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf")}
    return subprocess.Popen(
        [sys.executable, "-m", "aesthetic", "download-weights", *names],
        cwd=snapshot.ROOT,
        env={**os.environ, **ours, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(home: Path, endpoint: str, *names: str, **settings: str) -> subprocess.CompletedProcess[str]:
    with start(home, endpoint, *names, **settings) as process:
        out, err = process.communicate(timeout=60)
    assert not (home / ".cog/download").exists()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def is_whole(home: Path) -> bool:
    manifest = read_manifest(home / "weights")
    return all(
        (home / "weights" / name / file).is_file() and snapshot.sha256(home / "weights" / name / file) == facts.sha256
        for name, source in manifest.items()
        for file, facts in source.files.items()
    )


def change(home: Path, name: str, file: str, **facts: object) -> None:
    """Change the manifest's entry of a file."""
    manifest = json.loads((home / "weights/manifest.json").read_text())
    manifest[name]["files"][file] |= facts
    snapshot.write_json(home / "weights/manifest.json", manifest)


def enlarge_unet(home: Path, hub: Hub) -> None:
    """Make the UNet larger than the 10 MiB that huggingface_hub writes at a time."""
    hub.changed[UNET] = os.urandom(24 * 2**20)
    change(home, MODEL, UNET, sha256=hashlib.sha256(hub.changed[UNET]).hexdigest(), bytes=None)


def test_fetches_everything_and_then_nothing(empty: Path, hub: Hub, home: Path) -> None:
    first = run(empty, hub.address, PATH="")
    assert first.returncode == 0, first.stderr
    assert "Everything is there, and every digest is right." in first.stdout
    assert f"{MODEL} (CreativeML Open RAIL-M): {empty}/weights/{MODEL}" in first.stdout
    assert is_whole(empty)
    for path in (home / "embeddings").glob("*.pt"):
        assert (empty / "embeddings" / path.name).read_bytes() == path.read_bytes()
    assert not list(empty.rglob(".cache"))
    assert checkpoint.locate(None, empty / "weights").name == MODEL

    hub.requests.clear()
    second = run(empty, hub.address)
    assert second.returncode == 0
    assert hub.requests == []


def test_fetches_only_what_is_named(empty: Path, hub: Hub) -> None:
    assert run(empty, hub.address, "predictor").returncode == 0
    assert (empty / "weights" / HEAD).is_file()
    assert len(hub.requests) == 1
    assert run(empty, hub.address, CLIP).returncode == 0
    assert sorted(path.name for path in (empty / "weights").iterdir()) == [CLIP, "manifest.json", "predictor"]
    answer = run(empty, hub.address, "nonsense")
    assert answer.returncode == 1
    assert f"there is no snapshot 'nonsense'; there are {MODEL}, {CLIP}, predictor" in answer.stderr


def test_bundled_files_are_verified_and_never_fetched(empty: Path, hub: Hub, home: Path) -> None:
    folder = shutil.copytree(home / "weights" / MODEL, empty / "weights" / "small")
    manifest = json.loads((empty / "weights/manifest.json").read_text())
    manifest["small"] = manifest[MODEL] | {"repo_id": None}
    snapshot.write_json(empty / "weights/manifest.json", manifest)
    index = json.loads((empty / "embeddings/index.json").read_text())
    [name, *_] = index
    del index[name]["url"]
    snapshot.write_json(empty / "embeddings/index.json", index)
    shutil.copy(home / "embeddings" / index[name]["file"], empty / "embeddings")

    alone = run(empty, hub.address, "small")
    assert alone.returncode == 0, alone.stderr
    assert "small (CreativeML Open RAIL-M): bundled" in alone.stdout
    assert hub.requests == []

    for path in (empty / "embeddings" / index[name]["file"], folder / UNET):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        answer = run(empty, hub.address, "small")
        assert answer.returncode == 1
        assert f"{path} and" in answer.stderr
        assert "the checkout is incomplete, and git checkout -- weights embeddings mends it" in answer.stderr
    answer = run(empty, hub.address)
    assert answer.returncode == 1
    assert "small/unet" in answer.stderr
    assert checkpoint.locate(None, empty / "weights").name == MODEL  # the other files have been fetched


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_download_leaves_no_partial_file_and_the_next_run_completes_it(
    empty: Path, hub: Hub, stop: signal.Signals, status: int
) -> None:
    enlarge_unet(empty, hub)
    hub.stalls[Path(UNET).name] = 15 * 2**20
    with start(empty, hub.address) as process:
        assert hub.stalled.wait(30)
        process.send_signal(stop)
        _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert stop == signal.SIGKILL or f"stopped; {AGAIN}" in err
    assert (empty / ".cog/download").exists() == (stop == signal.SIGKILL)
    assert missing(empty / "weights" / MODEL, read_manifest(empty / "weights")[MODEL])
    assert not (empty / "weights" / MODEL / UNET).exists()
    assert [path.name for path in empty.rglob("*.incomplete") if ".cog" not in path.parts] == []

    hub.requests.clear()
    answer = run(empty, hub.address)
    assert answer.returncode == 0, answer.stderr
    assert is_whole(empty)
    assert not [path for path in hub.fetched() if "aesthetics" in path]


def test_a_download_begins_with_an_empty_folder(empty: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run leaves gigabytes there, which huggingface_hub neither continues nor removes."""
    for path in (home / "embeddings").glob("*.pt"):
        shutil.copy(path, empty / "embeddings")
    (empty / ".cog/download/.cache").mkdir(parents=True)
    (empty / ".cog/download/.cache/unet.incomplete").write_bytes(b"half")
    found: list[Path] = []

    def look(*, local_dir: Path, **_: object) -> None:
        found.extend(local_dir.iterdir())
        raise OSError

    monkeypatch.setattr(download, "hf_hub_download", look)
    monkeypatch.setenv("AESTHETIC_HOME", str(empty))
    with pytest.raises(CheckpointError):
        download.provide([MODEL])
    assert found == []


def test_two_runs_at_once_fetch_each_file_once(empty: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (home / "embeddings").glob("*.pt"):
        shutil.copy(path, empty / "embeddings")
    fetched: list[str] = []

    def fetch(*, filename: str, local_dir: Path, **_: object) -> Path:
        fetched.append(filename)
        time.sleep(0.05)
        path = local_dir / filename
        path.parent.mkdir(exist_ok=True)
        return Path(shutil.copy(home / "weights" / MODEL / filename, path))

    monkeypatch.setattr(download, "hf_hub_download", fetch)
    monkeypatch.setenv("AESTHETIC_HOME", str(empty))
    with ThreadPoolExecutor() as runs:
        list(runs.map(download.provide, [[MODEL], [MODEL]]))
    assert len(set(fetched)) == len(fetched)


def test_weights_may_be_on_another_file_system(empty: Path, hub: Hub, home: Path) -> None:
    memory = Path("/dev/shm")  # noqa: S108
    if not memory.is_dir() or memory.stat().st_dev == empty.stat().st_dev:
        pytest.skip("there is no second file system")
    folder = memory / f"aesthetic-{os.getpid()}"
    shutil.move(empty / "weights", folder)
    (empty / "weights").symlink_to(folder)
    try:
        answer = run(empty, hub.address)
        assert answer.returncode == 0, answer.stderr
        assert is_whole(empty)
        assert not list(folder.rglob("*.part"))
    finally:
        shutil.rmtree(folder)


def test_the_token_goes_to_the_hub_alone(empty: Path, hub: Hub) -> None:
    assert run(empty, hub.address, MODEL, HF_TOKEN="hf_secret").returncode == 0
    assert ("127.0.0.1", "Bearer hf_secret") in hub.tokens
    assert {token for host, token in hub.tokens if host == "localhost"} == {None}
    hub.tokens.clear()
    assert run(empty, hub.address, "predictor", HF_TOKEN="hf_secret").returncode == 0
    assert hub.tokens == {("127.0.0.1", None)}


@pytest.mark.parametrize("file", [f"{MODEL}/{UNET}", HEAD])
def test_a_wrong_digest_is_refused(empty: Path, hub: Hub, file: str) -> None:
    hub.changed[file.partition("/")[2]] = b"other bytes"
    answer = run(empty, hub.address)
    assert answer.returncode == 1
    assert f"weights/{file}: its sha256 is {hashlib.sha256(b'other bytes').hexdigest()}, not " in answer.stderr
    assert "so it was discarded; " in answer.stderr
    assert answer.stderr.strip().endswith(AGAIN)
    assert not (empty / "weights" / file).exists()
    hub.changed.clear()
    assert run(empty, hub.address).returncode == 0
    assert is_whole(empty)


def test_only_the_start_of_an_endless_file_is_read(empty: Path, hub: Hub) -> None:
    hub.changed["head.pth"] = bytes(2**24)
    answer = run(empty, hub.address, "predictor")
    assert f"its sha256 is {hashlib.sha256(bytes(download.MAX_URL_BYTES)).hexdigest()}, not " in answer.stderr


def test_a_damaged_file_is_fetched_again(empty: Path, hub: Hub) -> None:
    assert run(empty, hub.address).returncode == 0
    (empty / "weights" / MODEL / UNET).write_bytes(b"damaged")
    (empty / "weights" / HEAD).write_bytes(b"damaged")
    hub.requests.clear()
    assert run(empty, hub.address).returncode == 0
    assert [Path(path).name for path in hub.fetched()] == ["head.pth", Path(UNET).name]
    assert is_whole(empty)


def test_an_unconfirmed_digest_yields_to_the_hub_s(empty: Path, hub: Hub) -> None:
    change(empty, MODEL, "model_index.json", sha256="0" * 64, bytes=None)
    assert "its sha256 is" in run(empty, hub.address).stderr
    change(empty, MODEL, "model_index.json", confirmed=False)
    assert run(empty, hub.address).returncode == 0
    hub.requests.clear()
    assert run(empty, hub.address).returncode == 0
    assert hub.fetched() == []
    (empty / "weights" / MODEL / "model_index.json").write_bytes(b"damaged")
    assert run(empty, hub.address).returncode == 0
    assert [Path(path).name for path in hub.fetched()] == ["model_index.json"]


@pytest.mark.parametrize("file", [f"{MODEL}/{UNET}", HEAD])
def test_a_missing_file_is_explained(empty: Path, hub: Hub, file: str) -> None:
    hub.missing.add(file.partition("/")[2])
    answer = run(empty, hub.address)
    assert answer.returncode == 1
    message = answer.stderr.splitlines()[-1]
    assert message.startswith(f"aesthetic: weights/{file}: the server refused it (")
    assert "404" in message
    assert message.endswith(f"check HF_ENDPOINT, HF_TOKEN and your proxy, if any, and {AGAIN}")
    assert "Traceback" not in answer.stderr


def test_small_files_fail_before_large_ones_are_fetched(empty: Path, hub: Hub) -> None:
    hub.missing.add("head.pth")
    assert run(empty, hub.address).returncode == 1
    assert not [path for path in hub.fetched() if MODEL in path]


def test_a_failed_connection_is_explained(empty: Path, hub: Hub) -> None:
    change(empty, "predictor", "head.pth", url="http://127.0.0.1:9/head.pth")
    for name, settings in (("predictor", {}), (CLIP, {"HF_HUB_OFFLINE": "1"})):
        answer = run(empty, hub.address, name, **settings)
        assert answer.returncode == 1
        assert f"aesthetic: weights/{name}/" in answer.stderr
        assert "the connection failed (" in answer.stderr
        assert f"check the network and {AGAIN}" in answer.stderr
        assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full (No space left on device); make room and"),
        (PermissionError(errno.EACCES, "Permission denied"), "[Errno 13] Permission denied;"),
        (RuntimeError("CAS error"), "CAS error;"),  # as hf_xet raises it
    ],
)
def test_other_failures_have_a_reason(
    empty: Path, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "hf_hub_download", raiser(error))
    monkeypatch.setenv("AESTHETIC_HOME", str(empty))
    with pytest.raises(CheckpointError) as raised:
        download.provide([CLIP])
    assert str(raised.value) == f"weights/{CLIP}/config.json: {message} {AGAIN}"
    assert not (empty / "weights" / CLIP).exists()


def raiser(error: Exception) -> Callable[..., None]:
    def fail(**_: object) -> None:
        raise error

    return fail
