"""predict: images from the inputs of predict.py, given as to Cog's own command, but drawn in this process."""

import argparse
import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ..errors import RequestError
from ..request import FIELDS, RENAMED, Request
from .arguments import add_ckpt, check_drawing

__all__ = ["add", "parse_inputs", "predict"]

log = logging.getLogger(__name__)

KINDS: dict[str, Any] = {name: spec.type for name, spec in FIELDS.items()}
KINDS |= {name: KINDS[new_name] | None for name, new_name in RENAMED.items()} | {"plms": bool | None}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of predict."""
    parser.add_argument(
        "-i",
        dest="inputs",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"an input; NAME=@FILE gives a file. Names: {', '.join(KINDS)}",
    )
    add_ckpt(parser)


def predict(options: argparse.Namespace) -> None:
    """Draw a request, and write the images to the current folder as output.0.png, output.1.png, ..."""
    request, folder = parse_inputs(options.inputs), Path.cwd()
    _require_writable(folder)
    check_drawing(request, options.ckpt)
    from ..service import Service

    paths, result = Service.load(options.ckpt).predict(request, folder)
    log.info("Metrics: %s", json.dumps(result.metrics))
    print(*paths, sep="\n")


def parse_inputs(pairs: Iterable[str]) -> Request:
    """The request of NAME=VALUE pairs; of several with one name, the last counts. Raises RequestError."""
    inputs = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise RequestError(f"-i takes NAME=VALUE, not {brief(pair)}")
        if name not in KINDS:
            raise RequestError(f"there is no input {brief(name)}; there are {', '.join(KINDS)}")
        inputs[name] = _value(name, text, KINDS[name])
    return Request.from_inputs(**inputs)


def _value(name: str, text: str, kind: Any) -> Any:
    """`text` as JSON of the input's type where it is; Request refuses any other."""
    if not text and isinstance(None, kind):
        return None  # blank, as in the form
    if kind == Path | None:
        return _file(name, text)
    if kind in (str, str | None):
        return text
    try:
        value = json.loads(text.lower())  # True is true
    except (ValueError, RecursionError):
        return text
    return text if value is None else value


def _file(name: str, text: str) -> Path:
    if not text.startswith("@"):
        raise RequestError(f"{name} takes a file, as {name}=@FILE, not {brief(text)}; download a URL's file first")
    try:
        path = Path(text[1:]).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of an unknown user
        raise RequestError(f"{name}: {brief(text)} can't be read: {error}") from error
    if is_folder:
        remedy = "zip it, or run 'aesthetic embed' on it" if name == "aesthetic_images" else "give a file in it"
        raise RequestError(f"{name}: {path} is a folder: {remedy}")
    if not is_file:
        raise RequestError(f"{name}: there is no file {path}")
    return path


def _require_writable(folder: Path) -> None:
    """Raise RequestError, before anything is drawn, if no image could be written."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"images are written to the current folder, and {folder} can't be written to ({error.strerror}): "
            "change to another folder"
        ) from error
