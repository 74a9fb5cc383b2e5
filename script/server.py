"""Become Cog's HTTP server, which `cog serve` runs in a container, in this checkout.

First come the checks of what would make every prediction fail, and the schema, by which alone Cog checks inputs.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

from aesthetic import settings
from aesthetic.errors import AestheticError, SettingError
from aesthetic.models import checkpoint
from predict import COGLET, require_writable
from script import schema

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]


def main() -> None:
    """Check, and replace this process by the server."""
    argparse.ArgumentParser(
        prog="script/serve",
        description="Run Cog's own HTTP server on 127.0.0.1, in this process: signals and logs are Cog's. PORT chooses "
        "the port (5000; 0 takes a free one, which the log names). GET /health-check says when it is READY.",
    ).parse_args()
    try:
        variables = environment()
        _require_port(variables["PORT"])
        require_writable(COGLET)
        schema.write()
    except AestheticError as error:
        raise SystemExit(f"script/serve: {error}") from error
    os.chdir(ROOT)
    os.execve(COMMAND[0], COMMAND, variables)


def environment() -> dict[str, str]:
    """The environment to run COMMAND in, from any folder that holds predict.py and the schema.

    Raises CheckpointError if the model is not there.
    """
    home, model = settings.home().absolute(), os.environ.get("AESTHETIC_MODEL")
    snapshot = checkpoint.locate(model, home / "weights")
    if model:  # a name, or a path, perhaps relative: the server runs in another folder
        model = snapshot.reference
    return {
        "LOG_FORMAT": "console",
        **os.environ,
        "PORT": os.environ.get("PORT") or "5000",
        "AESTHETIC_HOME": str(home),
        "AESTHETIC_MODEL": model or "",
        # Cog's worker is the first "python" on PATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "PYTHONWARNINGS": "ignore::DeprecationWarning",  # of names that older Cogs need
        "HF_HUB_OFFLINE": "1",  # no library fetches anything while serving
    }


def _require_port(port: str) -> None:
    try:
        socket.create_server(("127.0.0.1", int(port))).close()
    except (ValueError, OverflowError, OSError) as error:
        raise SettingError(f"PORT={port} can't be used ({error}); set PORT to a free one") from error


if __name__ == "__main__":
    main()
