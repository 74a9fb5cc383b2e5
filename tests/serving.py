"""Cog's server in its own process, as script/serve runs it, and a client for it."""

import base64
import json
import queue
import re
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from script import schema, server
from tests.snapshot import ROOT

PATIENCE = 300  # seconds until a server is ready: on a GPU, the first one compiles kernels
NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Server:
    """A server that is ready. log: the file with what it has written to stderr."""

    address: str
    process: "subprocess.Popen[bytes]"
    log: Path


@contextmanager
def serving(folder: Path = ROOT) -> Iterator[str]:
    """The address of a server that is ready, run in `folder`. Raises RuntimeError if its setup failed."""
    with started(folder=folder) as found:
        yield found.address


@contextmanager
def started(
    *, folder: Path = ROOT, prefix: Sequence[str] = (), variables: Mapping[str, str] = NOTHING
) -> Iterator[Server]:
    """A server that is ready, run in `folder`. Raises RuntimeError if its setup failed.

    prefix:    of its command line.
    variables: of its environment, beside those of script/serve.
    """
    if folder == ROOT:
        schema.write()
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(
            [*prefix, *server.COMMAND],
            cwd=folder,
            env={**server.environment(), "PORT": "0", **variables},
            stderr=log,
        ) as process,
    ):
        try:
            yield Server(ready(Path(log.name)), process, Path(log.name))
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:  # Cog first finishes a synchronous prediction
        process.kill()


def ready(log: Path) -> str:
    """The address of the server that writes `log`, once it is ready. Raises RuntimeError if its setup failed."""
    for _ in range(PATIENCE * 20):
        if found := re.search(r"Starting coglet server on ([\d.:]+)", log.read_text(encoding="utf-8")):
            wait_until_idle(f"http://{found[1]}")
            return f"http://{found[1]}"
        time.sleep(0.05)
    raise TimeoutError(log.read_text(encoding="utf-8"))


def wait_until_idle(address: str) -> None:
    for _ in range(PATIENCE * 20):
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
    for _ in range(600):
        status, answer = attempt(url, body, method=method, timeout=timeout, **headers)
        if status != 409:
            return status, answer
        time.sleep(0.05)
    raise TimeoutError(url)


def attempt(
    url: str, body: object = None, *, method: str | None = None, timeout: float = 60, **headers: str
) -> tuple[int, dict[str, Any]]:
    """The status and JSON of a request that is sent once. Raises OSError if there is no answer."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        url, data=data, method=method, headers={"Content-Type": "application/json", **names}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        content = error.read()
        return error.code, json.loads(content) if content.startswith(b"{") else {"text": content.decode()}


def files(prediction: dict[str, Any]) -> list[bytes]:
    """The files of a prediction that succeeded."""
    assert prediction["status"] == "succeeded", prediction
    assert all(url.startswith("data:image/") for url in prediction["output"])
    return [base64.b64decode(url.partition(",")[2]) for url in prediction["output"]]


def data_url(data: bytes) -> str:
    """A file as an input."""
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


class Quiet(BaseHTTPRequestHandler):
    """A handler without a log."""

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@contextmanager
def listening(handler: type[Quiet]) -> Iterator[str]:
    """The URL of a local HTTP server."""
    listener = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_address[1]}/"
    finally:
        listener.shutdown()
        listener.server_close()


@contextmanager
def webhook() -> Iterator[tuple[str, "queue.Queue[dict[str, Any]]"]]:
    """A URL, and what is posted to it."""
    events: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(Quiet):
        def do_POST(self) -> None:
            """Keep the event."""
            events.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    with listening(Handler) as url:
        yield url, events


def finished(events: "queue.Queue[dict[str, Any]]", prediction: str) -> dict[str, Any]:
    """The event that ends a prediction."""
    while True:
        event = events.get(timeout=60)
        if event["id"] == prediction and event["status"] in ("succeeded", "failed", "canceled"):
            return event
