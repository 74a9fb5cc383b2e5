"""Cog's HTTP server, run from the checkout: what `cog serve` does, without Docker.

The schema is written first, since Cog checks inputs by nothing else.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aesthetic import settings
from aesthetic.errors import AestheticError
from aesthetic.models import checkpoint
from script import schema
from script.signals import ENDING, Signals

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
PATIENCE = 60  # seconds, for a prediction to be finished in


@contextmanager
def environment(port: int) -> Iterator[dict[str, str]]:
    """The environment to run COMMAND in, from ROOT. Port 0 takes a free one, which the log then names.

    Raises CheckpointError or SettingError for what would end the server in the middle of a traceback.
    """
    home, model = settings.home().absolute(), os.environ.get("AESTHETIC_MODEL")
    snapshot = checkpoint.locate(model, home / "weights")
    if model and snapshot.revision == "local":  # its path is relative to the user's folder, not to ROOT
        model = str((snapshot.file or snapshot.folder).absolute())
    schema.write()
    with tempfile.TemporaryDirectory(prefix="aesthetic-server-") as folder:
        yield {
            **os.environ,
            "AESTHETIC_HOME": str(home),
            "AESTHETIC_MODEL": model or "",
            # Its worker is whatever "python" it finds first.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
            "PORT": str(port),
            "TMPDIR": folder,  # Cog leaves the last prediction's files behind
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # of names that older Cogs need
            "HF_HUB_OFFLINE": "1",  # nothing is fetched while serving, whatever a library may think
        }


def start(variables: dict[str, str], **options: Any) -> "subprocess.Popen[str]":
    """Run COMMAND in an environment and in a session of its own, to be ended by `stop`."""
    return subprocess.Popen(COMMAND, cwd=ROOT, env=variables, start_new_session=True, **options)


def stop(process: "subprocess.Popen[str]", patience: float, signals: Signals) -> None:
    """End a server and the worker that holds its model.

    It has `patience` seconds to finish what it is drawing, unless another signal is heard. Then all of it is killed:
    one whose log nobody reads may hear nothing.
    """
    heard, end = len(signals.heard), time.monotonic() + patience
    process.terminate()
    while process.poll() is None and len(signals.heard) == heard and time.monotonic() < end:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped, with a readable log; returns the exit status."""
    argparse.ArgumentParser(
        prog="script/serve",
        description="Run Cog's own HTTP server on 127.0.0.1. PORT chooses the port (5000). Ctrl-C ends it when it has "
        f"finished what it is drawing, or after {PATIENCE} seconds; pressed again, at once.",
    ).parse_args(arguments)
    signals = Signals(*ENDING)
    port = _port()
    try:
        return _serve(port, signals)
    except AestheticError as error:
        raise SystemExit(f"script/serve: {error}") from error


def _serve(port: int, signals: Signals) -> int:
    with environment(port) as variables:
        where = f"http://127.0.0.1:{port}" if port else "a free port, which the log names"
        print(f"Serving on {where}; Ctrl-C stops, once the last picture is drawn; again, at once", file=sys.stderr)
        with start({"LOG_FORMAT": "console", **variables}) as process:
            try:
                with signals.raised():
                    return process.wait()
            except (KeyboardInterrupt, SystemExit):
                return 0
            finally:
                stop(process, PATIENCE, signals)


def _port() -> int:
    """PORT, if it can be listened at: Cog's server would end in a traceback."""
    wanted = os.environ.get("PORT") or "5000"
    try:
        with socket.create_server(("127.0.0.1", int(wanted))):
            return int(wanted)
    except (ValueError, OverflowError, OSError) as error:
        raise SystemExit(f"script/serve: PORT={wanted} can't be used ({error}); set PORT to a free one") from error


if __name__ == "__main__":
    sys.exit(main())
