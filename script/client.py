"""`cog predict` without Docker: start Cog's server, send it one prediction, write the pictures, stop it."""

import argparse
import base64
import json
import mimetypes
import os
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aesthetic.errors import AestheticError
from aesthetic.request import Request
from aesthetic.writing import whole
from script import schema, server
from script.signals import ENDING, Signals

PATIENCE = 3  # seconds for a server to end in: nothing that it still draws is waited for
MOST = 100 * 2**20 - 1000  # bytes of what Cog reads of a request, less what stands around the inputs


class RefusedError(Exception):
    """The prediction did not succeed; the message is for the user."""


def main(arguments: list[str] | None = None) -> int:
    """The command script/predict; returns its exit status."""
    parser = argparse.ArgumentParser(prog="script/predict", description="Draw pictures through Cog's own server.")
    parser.add_argument(
        "-i",
        dest="inputs",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an input, as for `cog predict`; NAME=@FILE sends a file. The README lists them all",
    )
    options = parser.parse_args(arguments)
    signals = Signals(*ENDING)
    if sys.stderr is None:  # it was closed
        _fall_silent()
    try:
        inputs = parse_inputs(options.inputs)
        _require_writable(Path.cwd())
        with running_server(signals) as address:
            prediction = predict(address, inputs)
        paths = list(write_outputs(prediction["output"]))
        print(*paths, sep="\n")
    except (RefusedError, AestheticError, OSError) as error:
        print(f"script/predict: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_inputs(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs as the JSON that the API takes; files become data URLs.

    Raises RefusedError and RequestError.
    """
    components = schema.openapi_schema()["components"]["schemas"]
    known = components["Input"]["properties"]
    inputs, given = {}, dict[str, Path]()
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise RefusedError(f"-i takes NAME=VALUE, not {pair!r}")
        if name not in known:
            raise RefusedError(f"there is no input {name!r}; there are {', '.join(known)}")
        if not text and known[name].get("nullable"):
            continue  # blank, as in the form
        kind = components.get(name, known[name])
        inputs[name] = _value(name, text, kind)
        if kind.get("format") == "uri":
            given[name] = Path(text)
        elif inputs[name] not in kind.get("enum", [inputs[name]]):
            raise RefusedError(f"{name} must be one of {', '.join(map(str, kind['enum']))}, not {text!r}")
    Request.from_inputs(**inputs | given)  # the server would refuse the same, once its model is loaded
    _require_sendable(len(json.dumps(inputs)))
    return inputs


def _require_writable(folder: Path) -> None:
    """Raise RefusedError, before anything is drawn, if no picture could be written."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RefusedError(
            f"pictures go into the folder that one is in, and none can be written to {folder}"
        ) from error


@contextmanager
def running_server(signals: Signals | None = None) -> Iterator[str]:
    """Start the server on a free port, wait until its model is loaded, and stop it at the end, also after signals."""
    signals = signals or Signals()
    with server.environment(port=0) as variables:
        variables.pop("LOG_FORMAT", None)  # JSON, a line an event
        with server.start(variables, stderr=subprocess.PIPE, text=True) as process:
            log = Log(process)
            try:
                with signals.raised():
                    yield log.wait_until_ready()
            finally:
                server.stop(process, PATIENCE, signals)
                log.wait_until_closed()


def predict(address: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """POST one prediction and wait for it. Raises RefusedError with what the server said of bad inputs."""
    request = urllib.request.Request(
        f"{address}/predictions",
        data=json.dumps({"input": inputs}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as response:
            prediction: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise RefusedError(_complaint(error.read())) from error
    except OSError as error:
        raise RefusedError(f"the server went away: {error}") from error
    if prediction["status"] != "succeeded":
        raise RefusedError(prediction.get("error") or f"the prediction {prediction['status']}")
    return prediction


def write_outputs(urls: list[str]) -> Iterator[Path]:
    """Write the images, which come as data URLs, to output.0.png, output.1.png, …, by their types."""
    for i, url in enumerate(urls):
        kind, _, data = url.partition(",")
        suffix = mimetypes.guess_extension(kind.removeprefix("data:").partition(";")[0], strict=False)
        path = Path.cwd() / f"output.{i}{suffix}"
        with whole(path) as unfinished:
            unfinished.write_bytes(base64.b64decode(data))
        yield path


class Log:
    """Reads the server's log, shows what the model writes, and notices when it is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._address = ""
        self._errors: list[str] = []
        self._bar = ""
        self._ready = False
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> str:
        """The server's address, once it takes predictions. Raises RefusedError if it never will."""
        self._changed.wait()
        if not self._ready:
            self._thread.join(timeout=5)
            raise RefusedError("the server did not start:\n" + "\n".join(self._errors[-5:]))
        return self._address

    def wait_until_closed(self) -> None:
        """Return when the server has nothing more to say."""
        self._thread.join(timeout=5)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._notice(line)
        self._show("")
        self._changed.set()

    def _notice(self, line: str) -> None:
        try:
            event = json.loads(line)
            fields, message = event["fields"], str(event["fields"]["message"])
        except (ValueError, KeyError, TypeError):
            _tell(line, end="")
            return
        if message.startswith("Starting coglet server on "):
            self._address = "http://" + message.rpartition(" ")[2]
        elif message == "Server ready":
            self._ready = True
            self._changed.set()
        elif "source" in fields or event.get("target") == "coglet::user":
            self._show(message)
        elif event.get("level") == "ERROR":
            self._errors.append(str(fields.get("error", message)).rpartition("etup failed: ")[2])
            self._changed.set()

    def _show(self, message: str) -> None:
        """Show a line of the model's log. A progress bar draws over itself, or without a terminal comes once."""
        ended, self._bar = self._bar, message if "%|" in message else ""
        if sys.stderr.isatty():
            start = "\r" if self._bar else "\n" if ended else ""
            _tell(f"{start}{message}", end="" if self._bar else "\n")
        elif not self._bar:
            for line in filter(None, (ended, message)):
                _tell(line)


def _tell(text: str, end: str = "\n") -> None:
    """Write to stderr as long as somebody hears it: what the server says must be read on, or it waits."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        _fall_silent()


def _fall_silent() -> None:
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  Python, too, writes there at its end


def _value(name: str, text: str, kind: dict[str, Any]) -> Any:
    if kind.get("format") == "uri":
        if text.startswith(("http://", "https://", "data:")):
            return text
        if not text.startswith("@"):
            raise RefusedError(f"{name} takes a file, as {name}=@{text}, or an http(s) URL")
        return _data_url(name, Path(text[1:]))
    if kind["type"] == "string":
        return text
    try:
        value = json.loads(text.lower() if kind["type"] == "boolean" else text)
    except (ValueError, RecursionError):
        return text  # whoever checks it knows better what to say of it
    return text if value is None else value


def _data_url(name: str, path: Path) -> str:
    try:
        if not path.is_file():
            raise RefusedError(f"{name}: there is no file {path}")
        _require_sendable(path.stat().st_size)
        data = path.read_bytes()
    except OSError as error:
        raise RefusedError(f"{name}: {path} can't be read: {error.strerror}") from error
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _require_sendable(size: int) -> None:
    if size > MOST:
        raise RefusedError(
            "Cog takes requests of up to 100 MiB, in which files take a third more than their size: give the URL of a "
            "large one"
        )


def _complaint(body: bytes) -> str:
    """What a 4xx answer says, a line for each input that is wrong."""
    try:
        detail = json.loads(body)["detail"]
        return "\n".join(f"{item['loc'][-1]}: {item['msg']}" for item in detail)
    except (ValueError, KeyError, TypeError, IndexError):
        return body.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
