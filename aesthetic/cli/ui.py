"""ui: a page in the browser to draw, compare and make aesthetics on."""

import argparse
import importlib.util
import os

from ..errors import RequestError
from .arguments import add_ckpt, check_drawing

__all__ = ["add", "ui"]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ui."""
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on; others let other machines in.")
    parser.add_argument("--port", type=int, default=7860, help="Port to listen on.")
    add_ckpt(parser)


def ui(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    if importlib.util.find_spec("gradio") is None:
        raise RequestError(
            "the page needs gradio: script/ui in a checkout installs it, and so does "
            "python -m pip install --no-deps -r requirements-ui.txt"
        )
    os.environ["TQDM_DISABLE"] = ""  # the page shows the bars
    from ..service import Service
    from ..ui.serving import serve

    serve(Service.load(options.ckpt), lambda request: check_drawing(request, options.ckpt), options.host, options.port)
