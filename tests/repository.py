"""A git repository on the disk to fetch from, and to make lie."""

import os
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path

MODERN = ("uploadpack.allowFilter=true", "uploadpack.allowAnySHA1InWant=true")  # as GitHub is


def git(folder: Path, *arguments: str) -> str:
    """What git says in `folder`, whatever the developer's own settings."""
    done = subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", *arguments],
        cwd=folder,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def commit(folder: Path, files: Mapping[str, bytes], *, settings: tuple[str, ...] = MODERN) -> str:
    """Commit `files` to the repository in `folder`, which is made if there is none. Returns the commit's id."""
    folder.mkdir(exist_ok=True)
    git(folder, "init", "--quiet")
    for setting in settings:
        git(folder, "config", *setting.split("="))
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "Some files")
    return git(folder, "rev-parse", "HEAD")


def forge(folder: Path, name: str, other: str) -> None:
    """Let the repository give another object's content out as that of `name`; both as git's rev-parse takes them."""
    ids = [git(folder, "rev-parse", one) for one in (name, other)]
    path, content = (folder / ".git" / "objects" / one[:2] / one[2:] for one in ids)
    assert zlib.decompress(path.read_bytes()) != zlib.decompress(content.read_bytes())
    path.chmod(0o644)
    path.write_bytes(content.read_bytes())
