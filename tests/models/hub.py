"""A small HTTP server that speaks as much of the hub's protocol as a download needs, and can be made to fail.

HEAD and GET of /REPO/resolve/REVISION/FILE, with the commit, the etag (the git blob's SHA-1, or the sha256 of large
files) and the size in the headers; large files redirect to another host, as the hub redirects to its storage.
"""

import hashlib
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LARGE = ".safetensors"


class Hub:
    """Serves `files` (path below the repository's name -> content) as revision `revision` of every repository."""

    def __init__(self, folders: dict[str, Path], revisions: dict[str, str]) -> None:
        self.folders, self.revisions = folders, revisions
        self.changed: dict[str, bytes] = {}  # file name -> what is served instead
        self.missing: set[str] = set()
        self.stalls: dict[str, int] = {}  # file name -> how many bytes come before the server falls silent, once
        self.stalled = threading.Event()
        self.requests: list[tuple[str, str]] = []  # method, path
        self.tokens: set[tuple[str, str | None]] = set()  # host, and the token that it was given
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        port = self._server.server_address[1]
        self.address, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}/storage"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self) -> list[str]:
        """The paths that were asked for with GET, in order."""
        return [path for method, path in self.requests if method == "GET"]

    def content(self, path: str) -> tuple[str, bytes] | None:
        """The revision and content behind a path; None if there is none."""
        for repo, folder in self.folders.items():
            start = f"{repo}/resolve/{self.revisions[repo]}/"
            for prefix in ("/", "/storage/"):
                if path.startswith(prefix + start):
                    name = path.removeprefix(prefix + start)
                    if name in self.missing or not (folder / name).is_file():
                        return None
                    return self.revisions[repo], self.changed.get(name, (folder / name).read_bytes())
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self, *, body: bool) -> None:
                found = hub.content(self.path)
                if "/resolve/" in self.path:  # huggingface_hub has business of its own with the hub
                    hub.requests.append((self.command, self.path))
                    hub.tokens.add((self.headers["Host"].partition(":")[0], self.headers["Authorization"]))
                if found is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                revision, data = found
                if self.path.endswith(LARGE) and not self.path.startswith("/storage/"):
                    self.send_response(302)
                    self.send_header("Location", hub.storage + self.path)
                    self.send_header("X-Linked-Size", str(len(data)))
                    self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
                    self.send_header("X-Repo-Commit", revision)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f'"{_git_sha1(data)}"')
                self.send_header("X-Repo-Commit", revision)
                self.end_headers()
                if body:
                    self._send(data, hub.stalls.pop(Path(self.path).name, None))

            def _send(self, data: bytes, limit: int | None) -> None:
                self.wfile.write(data[:limit])
                if limit is not None:
                    hub.stalled.set()
                    with suppress(ConnectionError):
                        self.rfile.read(1)  # returns once the client has gone
                    self.close_connection = True

        return Handler


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
