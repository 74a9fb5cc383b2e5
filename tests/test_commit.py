"""Files out of a commit: what was committed, or nothing."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aesthetic import commit
from aesthetic.errors import DownloadError
from tests import repository

FILES = {"head.pth": os.urandom(4000), "folder/a b.bin": os.urandom(100), "large.npy": os.urandom(10**5)}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "origin"


@pytest.fixture
def pinned(origin: Path) -> str:
    """A commit that is not the last one."""
    pinned = repository.commit(origin, FILES)
    repository.commit(origin, {"head.pth": b"another", "more.txt": b"more"})
    return pinned


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def read(origin: Path, pinned: str, scratch: Path, *paths: str) -> dict[str, bytes]:
    return commit.read(f"file://{origin}", pinned, paths or ["head.pth"], scratch)


def refusal(origin: Path, pinned: str, scratch: Path, *paths: str) -> str:
    with pytest.raises(DownloadError) as error:
        read(origin, pinned, scratch, *paths)
    assert not list(scratch.iterdir())
    return str(error.value)


def test_what_was_committed_comes_out(origin: Path, pinned: str, scratch: Path) -> None:
    wanted = ["head.pth", "folder/a b.bin"]
    assert read(origin, pinned, scratch, *wanted) == {name: FILES[name] for name in wanted}
    assert not list(scratch.iterdir())


def test_a_server_that_knows_no_filters_will_do(origin: Path, scratch: Path) -> None:
    pinned = repository.commit(origin, FILES, settings=())
    assert read(origin, pinned, scratch) == {"head.pth": FILES["head.pth"]}


def test_what_is_not_wanted_is_not_fetched(
    origin: Path, pinned: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, found = commit._git, []

    def counted(environment: dict[str, str], *arguments: str) -> bytes:
        answer = ask(environment, *arguments)
        if arguments[0] == "cat-file":
            found.extend(ask(environment, "cat-file", "--batch-all-objects", "--batch-check").decode().split())
        return answer

    monkeypatch.setattr(commit, "_git", counted)
    read(origin, pinned, scratch)
    fetched = [repository.git(origin, "rev-parse", f"{pinned}:{name}") in found for name in FILES]
    assert fetched == [True, False, False]
    assert repository.git(origin, "rev-parse", "HEAD") not in found


def test_what_is_not_there_is_refused(origin: Path, pinned: str, scratch: Path) -> None:
    assert "upload-pack: not our ref 1111" in refusal(origin, "1" * 40, scratch)
    assert "git cat-file: fatal: path 'more.txt' does not exist in" in refusal(origin, pinned, scratch, "more.txt")
    assert "git fetch: " in refusal(origin / "nowhere", pinned, scratch)


def test_only_an_id_pins_a_commit(origin: Path, pinned: str, scratch: Path) -> None:
    repository.git(origin, "branch", "-M", "main")
    repository.git(origin, "tag", "v1", pinned)
    for name in ("main", "v1", "HEAD", pinned[:12]):
        refusal(origin, name, scratch)


@pytest.mark.parametrize("settings", [(), repository.MODERN])
@pytest.mark.parametrize(
    ("name", "other"), [("{}:head.pth", "HEAD:head.pth"), ("{}^{{tree}}", "HEAD^{{tree}}"), ("{}", "HEAD")]
)
def test_a_server_that_lies_is_found_out(
    origin: Path, scratch: Path, name: str, other: str, settings: tuple[str, ...]
) -> None:
    """Of the file, of the folder that names it, and of the commit."""
    pinned = repository.commit(origin, FILES, settings=settings)
    repository.commit(origin, {"head.pth": b"another"})
    assert read(origin, pinned, scratch) == {"head.pth": FILES["head.pth"]}
    repository.forge(origin, name.format(pinned), other.format())
    refusal(origin, pinned, scratch)


def test_git_is_kept_to_its_own_repository(
    origin: Path, pinned: str, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a hook, where git's variables point at another one."""
    elsewhere = tmp_path / "elsewhere"
    repository.commit(elsewhere, {"other.txt": b"elsewhere"})
    before = sorted((elsewhere / ".git").rglob("*"))
    with monkeypatch.context() as hook:
        hook.setenv("GIT_DIR", str(elsewhere / ".git"))
        hook.setenv("GIT_OBJECT_DIRECTORY", str(elsewhere / ".git" / "objects"))
        hook.setenv("GIT_SHALLOW_FILE", str(elsewhere / ".git" / "shallow"))
        assert read(origin, pinned, scratch) == {"head.pth": FILES["head.pth"]}
    assert sorted((elsewhere / ".git").rglob("*")) == before


def test_without_git_it_says_so(origin: Path, pinned: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(scratch))
    assert "there is no git on PATH: install git" in refusal(origin, pinned, scratch)


@pytest.mark.parametrize("command", ["init", "fetch", "cat-file"])
def test_a_stop_leaves_nothing(
    origin: Path, pinned: str, scratch: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = commit._git

    def stopped(environment: dict[str, str], *arguments: str) -> Any:
        answer = ask(environment, *arguments)
        if arguments[0] == command:
            assert list(scratch.iterdir())
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(commit, "_git", stopped)
    with pytest.raises(KeyboardInterrupt):
        read(origin, pinned, scratch)
    assert not list(scratch.iterdir())


def test_nobody_is_asked_for_a_password(scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "ask").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    (tmp_path / "ask").chmod(0o755)
    (tmp_path / "config").write_text(f'[credential]\nhelper = "!{tmp_path}/ask"\n[core]\naskPass = {tmp_path}/ask\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    for name in ("GIT_ASKPASS", "SSH_ASKPASS"):
        monkeypatch.setenv(name, str(tmp_path / "ask"))
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(DownloadError, match="terminal prompts disabled"):
            commit.read(f"http://127.0.0.1:{server.server_port}", "1" * 40, ["head.pth"], scratch)
        server.shutdown()
    assert not (tmp_path / "asked").exists()
