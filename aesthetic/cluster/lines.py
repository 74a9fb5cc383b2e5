"""The lines of a file of requests, which are untrusted: a bad one has an error in place of its inputs.

Ray, which takes seconds to import, is not needed.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from reprlib import repr as brief
from typing import Any

from ..errors import RequestError
from ..models.checkpoint import Snapshot
from .files import Folder

__all__ = ["Line", "read_lines"]

MAX_LINE = 100 * 2**20  # bytes, as of the body that Cog takes
ID = re.compile(r"(?!line-)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the file.

    id:     its own, or line-N for line N.
    inputs: of the prediction; None for a line that can't be read.
    error:  why it can't.
    digest: of the line and the model: a row with another one is of something else.
    """

    id: str
    inputs: Mapping[str, Any] | None = None
    error: str | None = None
    digest: str = ""


def read_lines(requests: Folder, name: str, model: Snapshot) -> list[Line]:
    """The lines of a file of requests; blank ones are skipped. Raises RequestError if there are no others."""
    lines, numbers = list[Line](), dict[str, int]()
    with requests.open(name) as file:
        for number, text in enumerate(_bounded(file), start=1):
            if not text.strip():
                continue
            line = _line(number, text, f"{model.reference} {model.revision}")
            if line.id in numbers:
                line = Line(id=f"line-{number}", error=f"id {line.id} is that of line {numbers[line.id]}, too")
            numbers[line.id] = number
            lines.append(line)
    if not lines:
        raise RequestError(f"{name} holds no request: one JSON object per line was expected")
    return lines


def _bounded(file: BufferedIOBase) -> Iterator[bytes]:
    """The lines of a file. One that is too long comes cut, which is no JSON."""
    while text := file.readline(MAX_LINE):
        yield text
        while len(text) == MAX_LINE and not text.endswith(b"\n"):
            text = file.readline(MAX_LINE)


def _line(number: int, text: bytes, model: str) -> Line:
    own = f"line-{number}"
    try:
        inputs = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Line(id=own, error=f"the line is not JSON: {error}")
    if not isinstance(inputs, dict):
        return Line(id=own, error=f"the line must be a JSON object, not {brief(inputs)}")
    name = inputs.pop("id", own)
    if name != own and not (isinstance(name, str) and ID.fullmatch(name)):
        rule = "id must be up to 100 letters, digits and ._-, begin with a letter or digit, and not with line-"
        return Line(id=own, error=f"{rule}: not {brief(name)}")
    digest = hashlib.sha256(f"{model}\n{json.dumps(inputs, sort_keys=True)}".encode()).hexdigest()
    return Line(id=name, inputs=inputs, digest=digest)
