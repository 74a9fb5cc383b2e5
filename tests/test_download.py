"""Downloads, against a server on this machine that speaks the hub's protocol, through the command that users run."""

import errno
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aesthetic import checkpoint, download
from aesthetic.errors import DownloadError
from tests import repository, snapshot
from tests.hub import Hub
from tests.snapshot import CLIP, MODEL

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
PREDICTOR, HEAD = "predictor", {"head.pth": b"some numbers"}


@pytest.fixture
def hub(home: Path) -> Iterator[Hub]:
    manifest = checkpoint.read_manifest(home / "weights")
    folders = {str(source.repo_id): home / "weights" / name for name, source in manifest.items()}
    folders["aesthetics"] = home / "embeddings"
    revisions = {str(source.repo_id): source.revision for source in manifest.values()} | {"aesthetics": "main"}
    with Hub(folders, revisions) as server:
        yield server


@pytest.fixture
def empty(home: Path, tmp_path: Path, hub: Hub) -> Path:
    """A home that knows what it should have, and where from, and has nothing yet."""
    for name in ("weights/manifest.json", "embeddings/index.json"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(home / name, tmp_path / name)
    index = json.loads((tmp_path / "embeddings/index.json").read_text())
    for entry in index.values():
        entry["url"] = f"{hub.address}/aesthetics/resolve/main/{entry['file']}"
    snapshot.write_json(tmp_path / "embeddings/index.json", index)
    return tmp_path


def run(home: Path, endpoint: str, *names: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: huggingface_hub reads its settings when it is imported."""
    settings = {"AESTHETIC_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "aesthetic.download", *names]
    return subprocess.run(
        command, cwd=snapshot.ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )


def ranges(hub: Hub) -> list[str | None]:
    """The Range headers with which the UNet was fetched."""
    return [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith(UNET)]


def is_whole(home: Path) -> bool:
    manifest = checkpoint.read_manifest(home / "weights")
    return all(
        (home / "weights" / name / file).is_file() and snapshot.sha256(home / "weights" / name / file) == facts.sha256
        for name, source in manifest.items()
        for file, facts in source.files.items()
    )


def test_fetches_everything_and_then_nothing(empty: Path, hub: Hub, home: Path) -> None:
    first = run(empty, hub.address)
    assert first.returncode == 0, first.stderr
    assert "Everything is there, and every digest is right." in first.stdout
    assert "CreativeML Open RAIL-M" in first.stdout
    assert is_whole(empty)
    for path in (home / "embeddings").iterdir():
        assert path.name == "index.json" or (empty / "embeddings" / path.name).read_bytes() == path.read_bytes()
    assert not list((empty / "weights" / ".partial").iterdir())
    assert checkpoint.locate(None, empty / "weights").name == MODEL

    hub.requests.clear()
    second = run(empty, hub.address)
    assert second.returncode == 0
    assert hub.requests == []


def test_fetches_only_what_is_named(empty: Path, hub: Hub) -> None:
    assert run(empty, hub.address, CLIP).returncode == 0
    assert sorted(path.name for path in (empty / "weights").iterdir()) == [".partial", CLIP, "manifest.json"]
    answer = run(empty, hub.address, "nonsense")
    assert answer.returncode == 1
    assert f"there is no snapshot 'nonsense'; there are {MODEL}, {CLIP}" in answer.stderr


def test_what_comes_with_the_checkout_is_verified_and_never_fetched(empty: Path, hub: Hub, home: Path) -> None:
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
    assert "comes with the checkout" in alone.stdout
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
    assert checkpoint.locate(None, empty / "weights").name == MODEL  # everything else has been fetched all the same


def test_a_cut_connection_is_resumed_at_once(empty: Path, hub: Hub) -> None:
    large = os.urandom(24 * 2**20)  # huggingface_hub writes 10 MiB at a time
    manifest = json.loads((empty / "weights/manifest.json").read_text())
    manifest[MODEL]["files"][UNET] = {"sha256": hashlib.sha256(large).hexdigest()}
    snapshot.write_json(empty / "weights/manifest.json", manifest)
    hub.changed[UNET] = large
    hub.cut[Path(UNET).name] = 15 * 2**20
    answer = run(empty, hub.address)
    assert answer.returncode == 0, answer.stderr
    assert is_whole(empty)
    assert ranges(hub) == [None, "bytes=10485760-"]


def test_shows_a_progress_bar_on_a_terminal(empty: Path, hub: Hub) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    settings = {"AESTHETIC_HOME": str(empty), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "aesthetic.download"]
    with subprocess.Popen(command, cwd=snapshot.ROOT, env={**os.environ, **settings}, stderr=theirs):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the end of a terminal
            while block := os.read(ours, 4096):
                shown += block
    os.close(ours)
    assert re.search(rb"diffusion_pytorch_model\.fp16\.safetensors: +100%", shown)


def test_an_interrupted_download_goes_on_in_the_next_run(empty: Path, hub: Hub, home: Path) -> None:
    whole = (home / "weights" / MODEL / UNET).read_bytes()
    digest = checkpoint.read_manifest(empty / "weights")[MODEL].files[UNET].sha256
    assert digest is not None
    (empty / "weights" / ".partial").mkdir()
    (empty / "weights" / ".partial" / digest).write_bytes(whole[:50_000])
    assert run(empty, hub.address).returncode == 0
    assert is_whole(empty)
    assert ranges(hub) == ["bytes=50000-"]


@pytest.mark.parametrize("surplus", [0, 5])
def test_what_is_left_of_a_run_that_was_killed_does_no_harm(empty: Path, hub: Hub, home: Path, surplus: int) -> None:
    partial = empty / "weights" / ".partial"
    partial.mkdir()
    index = json.loads((empty / "embeddings/index.json").read_text())
    [name, *_] = index
    for path in (home / "weights" / MODEL / UNET, home / "embeddings" / index[name]["file"]):
        (partial / snapshot.sha256(path)).write_bytes(path.read_bytes() + b"+" * surplus)
    answer = run(empty, hub.address)
    assert answer.returncode == 0, answer.stderr
    assert is_whole(empty)
    assert (empty / "embeddings" / index[name]["file"]).is_file()
    assert ranges(hub) == [None] * bool(surplus)


def test_the_token_goes_to_the_hub_alone(empty: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run(empty, hub.address, MODEL).returncode == 0
    assert ("127.0.0.1", "Bearer hf_secret") in hub.tokens
    assert {token for host, token in hub.tokens if host == "localhost"} == {None}


def test_a_wrong_digest_is_thrown_away(empty: Path, hub: Hub, home: Path) -> None:
    whole = (home / "weights" / MODEL / UNET).read_bytes()
    hub.changed[UNET] = whole[:-1] + bytes([whole[-1] ^ 1])
    answer = run(empty, hub.address)
    assert answer.returncode == 1
    assert f"{MODEL}/{UNET}: its sha256 is" in answer.stderr
    assert "was expected; it was thrown away; run script/download-weights again" in answer.stderr
    assert not (empty / "weights" / MODEL / UNET).exists()
    assert not list((empty / "weights" / ".partial").iterdir())
    hub.changed.clear()
    assert run(empty, hub.address).returncode == 0


def test_a_damaged_file_is_fetched_again(empty: Path, hub: Hub) -> None:
    assert run(empty, hub.address).returncode == 0
    (empty / "weights" / MODEL / UNET).write_bytes(b"damaged")
    hub.requests.clear()
    assert run(empty, hub.address).returncode == 0
    assert [Path(path).name for path in hub.fetched()] == [Path(UNET).name]
    assert is_whole(empty)


def test_for_an_unconfirmed_digest_the_hub_is_right(empty: Path, hub: Hub) -> None:
    manifest = json.loads((empty / "weights/manifest.json").read_text())
    file = manifest[MODEL]["files"]["model_index.json"]
    file |= {"sha256": "0" * 64, "bytes": None}
    snapshot.write_json(empty / "weights/manifest.json", manifest)
    assert "its sha256 is" in run(empty, hub.address).stderr
    file["confirmed"] = False
    snapshot.write_json(empty / "weights/manifest.json", manifest)
    assert run(empty, hub.address).returncode == 0
    hub.requests.clear()
    assert run(empty, hub.address).returncode == 0
    assert hub.fetched() == []


def test_a_missing_file_says_so(empty: Path, hub: Hub) -> None:
    hub.missing.add(UNET)
    answer = run(empty, hub.address)
    assert answer.returncode == 1
    assert f"{MODEL}/{UNET}: the server refused it: 404" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_no_network_says_so(empty: Path) -> None:
    answer = run(empty, "http://127.0.0.1:9")
    assert answer.returncode == 1
    assert "no connection" in answer.stderr
    assert "check the network and run script/download-weights again: it goes on where it stopped" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.fixture
def origin(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository, of which the manifest of `empty` names a commit that is not its last one."""
    origin = tmp_path_factory.mktemp("git") / "origin"
    pin(empty, f"file://{origin}", repository.commit(origin, HEAD))
    repository.commit(origin, {"head.pth": b"other numbers"})
    return origin


def pin(home: Path, url: str, revision: str) -> None:
    manifest = json.loads((home / "weights/manifest.json").read_text())
    files = {"head.pth": {"sha256": None}}
    manifest[PREDICTOR] = {"repo_id": None, "git": url, "revision": revision, "license": "MIT", "files": files}
    snapshot.write_json(home / "weights/manifest.json", manifest)


def head(home: Path) -> Path:
    return home / "weights" / PREDICTOR / "head.pth"


def test_what_is_in_a_git_repository_comes_along_and_stays(empty: Path, hub: Hub, origin: Path) -> None:
    first = run(empty, hub.address)
    assert first.returncode == 0, first.stderr
    assert f"{PREDICTOR} (MIT) -> {empty}/weights/{PREDICTOR}" in first.stdout
    assert head(empty).read_bytes() == HEAD["head.pth"]
    assert not list((empty / "weights" / ".partial").iterdir())
    [note] = head(empty).parent.glob("*.sha256")
    assert subprocess.run(["sha256sum", "--check", "--strict", note], cwd=note.parent, check=False).returncode == 0
    shutil.rmtree(origin)
    assert run(empty, hub.address).returncode == 0


def test_of_a_git_repository_only_what_is_named_is_fetched(empty: Path, hub: Hub, origin: Path) -> None:
    assert run(empty, hub.address, PREDICTOR).returncode == 0
    assert head(empty).read_bytes() == HEAD["head.pth"]
    assert hub.requests == []
    assert [path.name for path in (empty / "embeddings").iterdir()] == ["index.json"]


def test_what_a_git_repository_gave_is_fetched_again_once_it_is_damaged(empty: Path, hub: Hub, origin: Path) -> None:
    assert run(empty, hub.address, PREDICTOR).returncode == 0
    [note] = head(empty).parent.glob("*.sha256")
    for damaged in (head(empty), note):
        damaged.write_bytes(b"damaged")
        assert run(empty, hub.address, PREDICTOR).returncode == 0
        assert head(empty).read_bytes() == HEAD["head.pth"]


def test_another_commit_is_another_download(empty: Path, hub: Hub, origin: Path) -> None:
    assert run(empty, hub.address, PREDICTOR).returncode == 0
    pin(empty, f"file://{origin}", repository.git(origin, "rev-parse", "HEAD"))
    assert run(empty, hub.address, PREDICTOR).returncode == 0
    assert head(empty).read_bytes() == b"other numbers"


def test_a_git_repository_that_fails_stops_no_other_download(empty: Path, hub: Hub, origin: Path) -> None:
    pin(empty, f"file://{origin}", "1" * 40)
    answer = run(empty, hub.address)
    assert answer.returncode == 1
    assert f"{PREDICTOR}: git fetch: " in answer.stderr
    assert "upload-pack: not our ref 1111" in answer.stderr
    assert "run script/download-weights again" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not head(empty).parent.exists()
    assert not list((empty / "weights" / ".partial").iterdir())
    assert checkpoint.locate(None, empty / "weights").name == MODEL
    assert len(list((empty / "embeddings").iterdir())) == 9


def test_git_that_is_stopped_leaves_nothing(empty: Path, hub: Hub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pin(empty, f"git://127.0.0.1:{silent.getsockname()[1]}/origin", "1" * 40)
        command = [sys.executable, "-m", "aesthetic.download", PREDICTOR]
        settings = {**os.environ, "AESTHETIC_HOME": str(empty)}
        with (
            subprocess.Popen(command, cwd=snapshot.ROOT, env=settings, start_new_session=True) as process,
            silent.accept()[0],
        ):
            assert list((empty / "weights" / ".partial").iterdir())
            os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to all
            assert process.wait(timeout=30) == 130
    assert not list((empty / "weights" / ".partial").iterdir())
    assert not head(empty).parent.exists()


def fetch(remote: download._Remote, folder: Path) -> None:
    with download._explained("big"):
        download._fetch(remote, checkpoint.File(sha256="0" * 64), folder / "big", folder / ".partial")


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "http_get", full)
    with pytest.raises(DownloadError, match=r"big: the disk is full \(No space left on device\); make room and run"):
        fetch(download._Remote(url=""), tmp_path)


def test_a_disk_that_will_not_do_is_noticed_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"the disk is full \(1000000000000000 bytes are needed"):
        fetch(download._Remote(url="http://127.0.0.1:9", size=10**15), tmp_path)
