"""Cog's server in its own process, as script/serve runs it, and a client for it."""

import json
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from script import schema, server
from tests.snapshot import ROOT


@contextmanager
def serving(folder: Path = ROOT) -> Iterator[str]:
    """The address of a server that is ready, run in `folder`. Raises RuntimeError if its setup failed."""
    if folder == ROOT:
        schema.write()
    variables = {**server.environment(), "PORT": "0"}
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(server.COMMAND, cwd=folder, env=variables, stderr=log) as process,
    ):
        try:
            yield ready(Path(log.name))
        finally:
            process.terminate()


def ready(log: Path) -> str:
    """The address of the server that writes `log`, once it is ready. Raises RuntimeError if its setup failed."""
    for _ in range(1200):
        if found := re.search(r"Starting coglet server on ([\d.:]+)", log.read_text(encoding="utf-8")):
            wait_until_idle(f"http://{found[1]}")
            return f"http://{found[1]}"
        time.sleep(0.05)
    raise TimeoutError(log.read_text(encoding="utf-8"))


def wait_until_idle(address: str) -> None:
    for _ in range(1200):
        with suppress(urllib.error.URLError):  # nothing listens there yet
            health = call(f"{address}/health-check")[1]
            if health["status"] == "READY":
                return
            if health["status"] == "SETUP_FAILED":
                raise RuntimeError(health["setup"])
        time.sleep(0.05)
    raise TimeoutError("the server stays busy")


def call(
    url: str, body: object = None, *, method: str | None = None, timeout: float = 60, **headers: str
) -> tuple[int, dict[str, Any]]:
    """The status and JSON of a request; a body makes it a POST. Busy (409) is tried again, as Cog's clients must."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        url, data=data, method=method, headers={"Content-Type": "application/json", **names}
    )
    for _ in range(600):
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            content = error.read()
            if error.code != 409:
                return error.code, json.loads(content) if content.startswith(b"{") else {"text": content.decode()}
            time.sleep(0.05)
    raise TimeoutError(url)
