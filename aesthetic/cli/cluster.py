"""batch and serve: many requests, on all GPUs of this machine or of a Ray cluster; and the flags that name one."""

import argparse
import importlib.util
import logging
import os
import signal
import sys
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..errors import DrawingError, RequestError, SettingError
from .arguments import add_ckpt, require_port

if TYPE_CHECKING:
    from ..cluster.workers import Cluster

log = logging.getLogger(__name__)

ADDRESS = "of a Ray cluster, as HOST:6379, or auto on one of its nodes; blank: this machine alone"

__all__ = ["add_batch", "add_cluster", "add_serve", "batch", "cluster", "require_ray", "serve"]


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where to work."""
    flag = parser.add_argument
    flag("--address", help=ADDRESS)
    flag("--workers", type=int, metavar="COUNT", help="blank: one for each GPU, or without GPUs for each machine")


def cluster(options: argparse.Namespace) -> "Cluster":
    """Where the flags say to work. Raises RequestError, and SettingError if Ray is not installed."""
    require_ray(options)
    if options.workers is not None and options.workers < 1:
        raise RequestError(f"--workers must be 1 or more, not {options.workers}")
    from ..cluster.workers import Cluster

    return Cluster(address=options.address, workers=options.workers)


def require_ray(options: argparse.Namespace) -> None:
    """Raise SettingError if Ray is not installed. Call it before Ray is imported."""
    if importlib.util.find_spec("ray") is None:
        raise SettingError("this needs Ray: python -m pip install -r requirements-cluster.txt")
    if not options.address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on any system: use 127.0.0.1 only


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Add the flags of batch."""
    flag = parser.add_argument
    flag(
        "requests", metavar="REQUESTS.jsonl", help="path or URL of a file with the inputs of a prediction in each line"
    )
    flag("--outdir", required=True, help="path or URL of the folder to write to, and to resume")
    add_cluster(parser)
    add_ckpt(parser)


def batch(options: argparse.Namespace) -> None:
    """Draw every line of a file, and write images and results.jsonl."""
    require_ray(options)
    from ..cluster.files import Folder
    from ..cluster.lines import read_lines
    from ..models import checkpoint

    path = PurePosixPath(options.requests)
    folder, _, name = (
        options.requests.rpartition("/") if "://" in options.requests else (str(path.parent), "", path.name)
    )
    requests, out, model = Folder(folder), Folder(options.outdir), checkpoint.locate(options.ckpt)
    log.info("Model: %s (revision %s)", model.name, model.revision)
    lines = read_lines(requests, name, model)
    from ..cluster import batch

    try:
        found = batch.run(lines, requests, out, model=model, cluster=cluster(options))
    except KeyboardInterrupt:
        print(f"Stopped: the same command continues in {options.outdir}", file=sys.stderr)
        raise
    print(f"{found.succeeded} requests succeeded with {found.images} images, {found.failed} failed.")
    print(f"Drawn now: {found.drawn} images in {found.seconds:.0f} s, {found.drawn / found.seconds:.2f} images/s")
    print(f"{out.place}/results.jsonl")
    if not found.succeeded:
        raise DrawingError("no request gave an image: results.jsonl says why")


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the flags of serve."""
    flag = parser.add_argument
    flag("--host", default="127.0.0.1", help="address to listen on")
    flag("--port", type=int, default=8000, help="port to listen on")
    flag(
        "--replicas",
        type=_replicas,
        metavar="COUNT",
        help="as 4, or 1-4 to follow the queue; auto: one for each GPU",
    )
    flag("--queue", type=int, default=100, help="predictions to take at once, waiting or being drawn; others get 503")
    flag("--address", help=ADDRESS)
    add_ckpt(parser)


def serve(options: argparse.Namespace) -> None:
    """Serve predictions over HTTP until the command is stopped."""
    require_ray(options)
    if options.queue < 1:
        raise RequestError(f"--queue must be 1 or more, not {options.queue}")
    from ..models import checkpoint

    model = checkpoint.locate(options.ckpt)
    log.info("Model: %s (revision %s)", model.name, model.revision)
    if not options.address:
        require_port(options.host, options.port)
    from ..cluster.serve import Address, serving
    from ..cluster.workers import Cluster

    address = Address(host=options.host, port=options.port, replicas=options.replicas, queue=options.queue)
    with serving(address, model=model, cluster=Cluster(address=options.address)):
        print(f"Ready: http://{options.host}:{options.port}", flush=True)
        signal.pause()


def _replicas(text: str) -> tuple[int, int] | None:
    if text == "auto":
        return None
    fewest, dash, most = text.partition("-")
    try:
        found = int(fewest), int(most if dash else fewest)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"must be auto, a number as 4, or two as 1-4, not {text!r}")
    return found
