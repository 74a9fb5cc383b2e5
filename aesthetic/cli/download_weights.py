"""download-weights: Stable Diffusion, CLIP and the published aesthetics, fetched and verified."""

import argparse

__all__ = ["add", "run"]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of download-weights."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="a snapshot in weights/manifest.json; blank: all")


def run(options: argparse.Namespace) -> None:
    """Fetch the named snapshots, or all, with the aesthetics that go with them, and verify every file."""
    from ..models import download

    download.provide(options.names)
