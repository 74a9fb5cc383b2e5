"""What every kind of input is: the inputs to start from, how one becomes another, and what the service does with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from aesthetic.errors import AestheticError, DrawingError
from aesthetic.request import FIELDS, RENAMED, Request
from aesthetic.service import Service

__all__ = ["QUICK", "Bench", "Kind", "as_file", "names_field"]

# Settings with which a tiny model draws in a fraction of a second.
QUICK = {"width": 128, "height": 128, "scheduler": "DPMSolverMultistep", "num_inference_steps": 2}
QUICK |= {"aesthetic_steps": 1, "prompt_strength": 0.5, "seed": 1}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What inputs are tried on: a tiny model with random weights, and its home."""

    home: Path
    service: Service


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input. Each input is the bytes of one file or of one JSON body.

    seeds:  the inputs to start from, friendly and hostile.
    mutate: another input, from one that is there.
    run:    what the service does with it, writing only to a folder. Raises what the service raises.
    names:  whether an error tells which input is wrong.
    """

    name: str
    seeds: Callable[[Bench], list[bytes]]
    mutate: Callable[[Random, bytes], bytes]
    run: Callable[[Bench, bytes, Path], object]
    names: Callable[[AestheticError], bool]


def as_file(field: str, **others: Callable[[Path], object]) -> Callable[[Bench, bytes, Path], object]:
    """A prediction with the bytes as the file of an input.

    others: further inputs, each made in the folder of the prediction.
    """

    def run(bench: Bench, data: bytes, folder: Path) -> object:
        path = folder / "upload"  # Cog's names tell nothing
        path.write_bytes(data)
        made = {name: make(folder) for name, make in others.items()}
        return bench.service.predict(Request.from_inputs(**QUICK, **made, **{field: path}), folder)

    return run


def names_field(*fields: str) -> Callable[[AestheticError], bool]:
    """Whether an error starts with one of these inputs; one in drawing may name any input that would help."""

    def names(error: AestheticError) -> bool:
        if isinstance(error, DrawingError):
            return any(name in str(error) for name in [*FIELDS, *RENAMED])
        return str(error).startswith(tuple(f"{field}: " for field in fields))

    return names
