"""LAION's aesthetic predictor: the score that people would give an image, predicted from its CLIP features.

A linear layer on the unit features of OpenAI's CLIP ViT-L/14, fitted to human scores from 1 to 10:
https://github.com/LAION-AI/aesthetic-predictor. script/download-weights fetches the layer.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief

import torch
from torch import Tensor

from ..embeddings import torch_pickle
from ..embeddings.embedding import unit
from ..errors import CheckpointError
from ..models.manifest import missing, read_manifest
from ..settings import DOWNLOAD

__all__ = ["NAME", "Predictor", "load_predictor", "locate"]

NAME = "laion-aesthetic-predictor"  # in the manifest
EXPECTED = (
    "a weight [1, {dim}] and a bias [1] of finite floats were expected: "
    f"run {DOWNLOAD} {NAME}, or remove the file and do without scores"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """The layer, on the CPU.

    weight: [1, D], fp32.
    bias:   [1], fp32.
    sha256: of its file.
    """

    weight: Tensor
    bias: Tensor
    sha256: str

    def score(self, features: Tensor) -> float:
        """The score of raw CLIP image features [1, D], on the CPU. It may lie outside of 1..10."""
        return torch.nn.functional.linear(unit(features), self.weight, self.bias).item()


def locate(weights: Path) -> Path | None:
    """The layer's file in `weights`, the folder of the manifest; None if it has not been downloaded."""
    source = read_manifest(weights).get(NAME)
    if source is None or missing(weights / NAME, source):
        return None
    [name] = source.files
    return weights / NAME / name


def load_predictor(path: Path, dim: int) -> Predictor:
    """The layer in a file, for a CLIP of `dim` dimensions: a torch.nn.Linear's state_dict, written by torch.save.

    Raises CheckpointError for anything else.
    """
    expected = EXPECTED.format(dim=dim)
    data = torch_pickle.read_bytes(path, str(path), expected=expected, error=CheckpointError)
    found = torch_pickle.load_pickle(str(path), data, expected=expected, error=CheckpointError, by_name=True)
    shapes = {"weight": (1, dim), "bias": (1,)}
    if not isinstance(found, dict) or set(found) != set(shapes):
        raise CheckpointError(f"{path} holds {_shown(found)}; {expected}")
    for name, shape in shapes.items():
        part = found[name]
        is_float = isinstance(part, Tensor) and part.is_floating_point()
        if not (is_float and part.shape == shape and part.isfinite().all()):
            raise CheckpointError(f"{path} holds another {name}; {expected}")
    weight, bias = (found[name].detach().float() for name in shapes)
    return Predictor(weight=weight, bias=bias, sha256=hashlib.sha256(data).hexdigest())


def _shown(found: object) -> str:
    if isinstance(found, dict):
        return brief([name for name in found if isinstance(name, str)])  # the repr of another key may be slow
    return f"a {type(found).__name__}"
