"""Files out of one commit of a git repository, by the commit's id, which vouches for them.

That id is a digest over the commit, and so over the ids of its folders and files, each a digest in turn. git calls
what it fetches by the digests that it computes itself, whatever a server says: under a commit's id comes out what was
put in, or nothing.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from .errors import DownloadError

__all__ = ["read"]

SETTINGS = (
    "core.hooksPath=/dev/null",  # nobody's hooks run here
    "credential.helper=",  # what is public needs no password, and nobody is asked for one
    "gc.auto=0",  # nothing goes on in the background once the repository is gone
    "maintenance.auto=false",
    "http.lowSpeedLimit=1",  # bytes a second
    "http.lowSpeedTime=60",  # seconds, after which git gives up
)


def read(url: str, commit: str, paths: Iterable[str], folder: Path) -> dict[str, bytes]:
    """The files `paths` of a commit, by path.

    commit: its whole id; names of branches and tags, which may come to mean another, are not understood.
    folder: where there is room for a repository of a few kB, of which nothing is left.

    Raises DownloadError if git is not there, or does not get them.
    """
    if shutil.which("git") is None:
        raise DownloadError("it is in a git repository, and there is no git on PATH: install git")
    with tempfile.TemporaryDirectory(prefix="git-", dir=folder, ignore_cleanup_errors=True) as name:
        git = partial(_git, _environment() | {"GIT_DIR": name})
        git("init", "--quiet", "--bare", "--object-format=sha1", "--template=")
        git("remote", "add", "origin", url)
        # Of a server that knows how to, what is in the files comes only once it is read.
        git("fetch", "--quiet", "--no-tags", "--depth=1", "--filter=blob:none", "origin", commit)
        return {path: git("cat-file", "blob", f"{commit}:{path}") for path in paths}


def _git(environment: dict[str, str], *arguments: str) -> bytes:
    """What git writes. Raises DownloadError with the last line of its complaint."""
    settings = [word for setting in SETTINGS for word in ("-c", setting)]
    done = subprocess.run(
        ["git", *settings, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        complaint = done.stderr.decode(errors="replace").split("\n")
        [*_, last] = [line for line in complaint if line.strip()] or [f"exit status {done.returncode}"]
        raise DownloadError(f"git {arguments[0]}: {last}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Ours, in which nothing points at another repository and nothing asks questions.

    What the user says of proxies, certificates and mirrors holds.
    """
    local = _git(dict(os.environ), "rev-parse", "--local-env-vars").decode().split()
    kept = {name: value for name, value in os.environ.items() if name not in local}
    return {**kept, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": ""}
