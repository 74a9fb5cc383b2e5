"""batch and serve: many requests, on all GPUs of this machine or of a Ray cluster; and the flags that name one."""

import argparse
import importlib.util
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..errors import DrawingError, SettingError
from .arguments import add_ckpt

if TYPE_CHECKING:
    from ..cluster.workers import Cluster

__all__ = ["add_batch", "add_cluster", "batch", "cluster", "require_ray"]


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where to work."""
    flag = parser.add_argument
    flag("--address", help="of a Ray cluster, as auto or ray://HOST:10001; blank: this machine alone")
    flag("--workers", type=int, metavar="COUNT", help="blank: one for each GPU, or without GPUs for each machine")


def cluster(options: argparse.Namespace) -> "Cluster":
    """Where the flags say to work."""
    from ..cluster.workers import Cluster

    return Cluster(address=options.address, workers=options.workers)


def require_ray() -> None:
    """Raise SettingError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise SettingError("this needs Ray: python -m pip install -r requirements-cluster.txt")


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
    require_ray()
    from ..cluster.files import Folder
    from ..cluster.lines import read_lines
    from ..models import checkpoint

    path = PurePosixPath(options.requests)
    folder, _, name = (
        options.requests.rpartition("/") if "://" in options.requests else (str(path.parent), "", path.name)
    )
    requests, out, model = Folder(folder), Folder(options.outdir), checkpoint.locate(options.ckpt)
    lines = read_lines(requests, name, model)
    from ..cluster import batch

    try:
        found = batch.run(lines, requests, out, model=model, cluster=cluster(options))
    except KeyboardInterrupt:
        print(f"Stopped: the same command continues in {options.outdir}")
        raise
    print(f"{found.succeeded} requests succeeded with {found.images} images, {found.failed} failed.")
    print(f"Drawn now: {found.drawn} images in {found.seconds:.0f} s, {found.drawn / found.seconds:.2f} images/s")
    print(f"{out.place}/results.jsonl")
    if not found.succeeded:
        raise DrawingError("no request gave an image: results.jsonl says why")
