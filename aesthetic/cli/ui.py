"""ui: a page in the browser to draw, compare and make aesthetics on."""

import argparse
import importlib.util
import os
import signal
import socket
import sys

from ..errors import RequestError
from .arguments import add_ckpt, check_drawing, require_port

__all__ = ["add", "ui"]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ui."""
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on; others let other machines in.")
    parser.add_argument("--port", type=int, default=7860, help="Port to listen on.")
    add_ckpt(parser)


def ui(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    if importlib.util.find_spec("gradio") is None:
        raise RequestError(
            "the page needs gradio: script/ui in a checkout installs it, and so does "
            "python -m pip install --no-deps -r requirements-ui.txt"
        )
    from ..models import checkpoint

    checkpoint.locate(options.ckpt)
    family = socket.AF_INET6 if options.host.startswith("[") else socket.AF_INET  # as gradio tells them apart
    require_port(options.host.strip("[]"), options.port, family)
    os.environ["TQDM_DISABLE"] = ""  # the page shows the bars
    from ..service import Service
    from ..ui.page import OPENING, launched

    service, place = Service.load(options.ckpt), {"server_name": options.host, "server_port": options.port}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    opening = OPENING if service.model.snapshot.bundled else {}
    with launched(service, lambda request: check_drawing(request, options.ckpt), opening, **place) as address:
        print(address, flush=True)
        signal.pause()
