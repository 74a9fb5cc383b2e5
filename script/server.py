"""Cog's HTTP server, run from the checkout: what `cog serve` does, without Docker.

The schema is written first, since Cog checks inputs by nothing else.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aesthetic import checkpoint
from aesthetic.errors import AestheticError

from . import schema

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]


@contextmanager
def environment(port: int) -> Iterator[dict[str, str]]:
    """The environment to run COMMAND in, from ROOT. Port 0 takes a free one, which the log then names.

    Raises CheckpointError if the model isn't there: the server would say so in the middle of a traceback.
    """
    checkpoint.locate(os.environ.get("AESTHETIC_MODEL"), checkpoint.home() / "weights")
    schema.write()
    with tempfile.TemporaryDirectory(prefix="aesthetic-server-") as folder:
        yield {
            **os.environ,
            # Its worker is whatever "python" it finds first.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
            "PORT": str(port),
            "TMPDIR": folder,  # Cog leaves the last prediction's files behind
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # of names that older Cogs need
            "HF_HUB_OFFLINE": "1",  # nothing is fetched while serving, whatever a library may think
        }


def main() -> int:
    """Serve until stopped, with a readable log; returns the exit status."""
    port = _port()
    try:
        return _serve(port)
    except AestheticError as error:
        raise SystemExit(f"script/serve: {error}") from error


def _serve(port: int) -> int:
    with environment(port) as variables:
        where = f"http://127.0.0.1:{port}" if port else "a free port, which the log names"
        print(f"Serving on {where}; Ctrl-C stops", file=sys.stderr)
        with subprocess.Popen(COMMAND, cwd=ROOT, env={"LOG_FORMAT": "console", **variables}) as server:
            signal.signal(signal.SIGTERM, lambda *_: server.terminate())
            try:
                return server.wait()
            except KeyboardInterrupt:  # the server has heard the same Ctrl-C
                server.wait()
                return 0


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
