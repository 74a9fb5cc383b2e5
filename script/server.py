"""Cog's HTTP server, run from the checkout: what `cog serve` does, without Docker.

The schema is written first, since Cog checks inputs by nothing else. Where no weights have been downloaded, a
tiny model with random weights is written to a temporary folder and served, so that there is something to see.
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
    """The environment to run COMMAND in, from ROOT. Port 0 takes a free one, which the log then names."""
    schema.write()
    with tempfile.TemporaryDirectory(prefix="aesthetic-server-") as folder:
        own = _random_home(Path(folder) / "home") if _has_no_model() else {}
        yield {
            **os.environ,
            "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
            "PORT": str(port),
            "TMPDIR": folder,  # Cog leaves the last prediction's files behind
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # of names that older Cogs need
            "HF_HUB_OFFLINE": "1",  # nothing is fetched while serving, whatever a library may think
            **own,
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
        print(f"Serving on http://127.0.0.1:{port} (0: a free port, see below); Ctrl-C stops", file=sys.stderr)
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


def _has_no_model() -> bool:
    """Whether nothing was downloaded and nothing else was asked for. What is half there is left to fail and say so."""
    weights = checkpoint.home() / "weights"
    downloaded = any((weights / name).is_dir() for name in checkpoint.read_manifest(weights))
    return not downloaded and not os.environ.get("AESTHETIC_MODEL")


def _random_home(folder: Path) -> dict[str, str]:
    print(
        "\n"
        "  ****************************************************************************************\n"
        "  *  NO WEIGHTS HAVE BEEN DOWNLOADED. A tiny model with RANDOM weights stands in: it     *\n"
        "  *  runs every part of the service, and what it draws is NOISE, not pictures.           *\n"
        "  *  script/download-weights fetches Stable Diffusion 1.5 (4.4 GB).                      *\n"
        "  ****************************************************************************************\n",
        file=sys.stderr,
    )
    command = [sys.executable, "-m", "tests.snapshot", str(folder), "--name", "random-weights"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {"AESTHETIC_HOME": str(folder), "AESTHETIC_MODEL": "random-weights"}


if __name__ == "__main__":
    sys.exit(main())
