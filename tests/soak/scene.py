"""What faults are tried with, and how they are told."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving import Server, started
from tests.soak.client import Client
from tests.soak.report import Finding

PART = "faults"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What each fault is tried with.

    home:     the model and the aesthetics, which are not changed.
    fixed:    the inputs of the prediction that is tried afterwards, and `expected` its file.
    slow:     inputs of a prediction that takes some seconds at least.
    """

    home: Path
    fixed: dict[str, Any]
    expected: bytes
    slow: dict[str, Any]

    @contextmanager
    def server(self, prefix: tuple[str, ...] = (), **variables: str) -> "Iterator[tuple[Server, Path]]":
        """A server, and its temporary folder."""
        with (
            tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder,
            started(prefix=prefix, variables={"TMPDIR": folder, **variables}) as server,
        ):
            yield server, Path(folder)

    def draws(self, server: Server) -> bool:
        """Whether the fixed prediction has its own bytes."""
        try:
            return Client(server.address, self.fixed).fixed_file() == self.expected
        except (AssertionError, OSError):
            return False


def finding(what: str, client: str, health: str, heals: str, *, holds: bool) -> Finding:
    facts = {"client": client, "/health-check": health, "healed by": heals}
    return Finding(part=PART, what=what, facts=facts, holds=holds)


def refusal(*command: str, **variables: str) -> str:
    """Why this machine does not permit a command, which does nothing lasting; blank if it does."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=60
        )
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"{command[0]} ended with {done.returncode}"


def healed_by(what: str, draws: bool) -> str:
    return what if draws else "nothing"
