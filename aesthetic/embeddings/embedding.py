"""An aesthetic: one vector in a CLIP space, read from a file, averaged from features, checked, and saved.

Files are untrusted. A .pt holds a bare tensor [D] or [1, D] of any float type, from any device, as in the original
code; a .safetensors holds one tensor named "aesthetic", and notes on its origin.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as brief

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import EmbeddingError
from ..writing import whole
from . import torch_pickle

__all__ = ["Aesthetic", "digest_of", "load_aesthetic", "mean", "require_fit", "save_aesthetic", "unit"]

MAX_DIM = 8192
KEY = "aesthetic"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FILE = "a .pt or .safetensors file of a few kB was expected"
EXPECTED = "one tensor [D] or [1, D] of finite floats that are not all zero was expected"


@dataclass(frozen=True, kw_only=True, eq=False)
class Aesthetic:
    """A direction in a CLIP space, which only models of the same space can follow.

    vector:     [1, D], fp32, unit norm, on the CPU.
    name:       for a file or images, the start of the sha256; for a mix, names and weights.
    sha256:     of the file, or `digest_of` the images or the parts of a mix.
    source:     "name", "mix", "file" or "pictures".
    clip_space: None where the file does not name it.
    notes:      the metadata of the file.
    """

    vector: Tensor
    name: str
    sha256: str
    source: str = "file"
    clip_space: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return self.vector.shape[-1]

    @property
    def provenance(self) -> dict[str, str]:
        """Name, source and sha256, for a recipe."""
        return {"name": self.name, "source": self.source, "sha256": self.sha256}

    def save(self, path: str | Path) -> None:
        """Write the vector in fp32, as .pt without notes, else as .safetensors with notes and CLIP space."""
        space = {} if self.clip_space is None else {"space": self.clip_space}
        save_aesthetic(Path(path), self.vector, {**self.notes, **space})


def load_aesthetic(path: Path, name: str | None = None, *, label: str | None = None) -> Aesthetic:
    """The aesthetic in a .pt or .safetensors file; the first bytes tell which.

    name:  None is the start of the sha256.
    label: the file's name in messages; None is its own.

    Raises EmbeddingError for anything but one vector of finite floats that are not all zero.
    """
    label = label or path.name
    data = torch_pickle.read_bytes(path, label, expected=FILE, error=EmbeddingError)
    notes: dict[str, str] = {}
    if data.startswith((torch_pickle.ZIP_MAGIC, torch_pickle.LEGACY)):
        vector = torch_pickle.load_pickle(label, data, expected=EXPECTED, error=EmbeddingError)
    else:
        vector, notes = _read_safetensors(label, path)
    sha256 = hashlib.sha256(data).hexdigest()
    return Aesthetic(
        vector=unit(_checked(label, vector)),
        name=name or sha256[:12],
        sha256=sha256,
        clip_space=notes.get("space"),
        notes=notes,
    )


def save_aesthetic(path: Path, vector: Tensor, notes: Mapping[str, str]) -> None:
    """Write `vector` [1, D] in fp32, as .pt, which has no room for notes, or else as .safetensors.

    notes: "space" names the CLIP space.
    """
    with whole(path) as unfinished:
        if path.suffix == ".pt":
            torch.save(vector.float().clone(), unfinished)
        else:
            unfinished.write_bytes(safetensors.torch.save({KEY: vector.float().contiguous()}, metadata=dict(notes)))


def mean(features: Iterable[Tensor]) -> Tensor:
    """The mean [1, D], fp32, of batches [n, D] of CLIP image features, not normalized, as in the original script.

    Summed in fp64, so that the batches make no difference.
    """
    total, count = torch.zeros(()), 0
    for batch in features:
        total = total + batch.double().cpu().sum(dim=0, keepdim=True)
        count += len(batch)
    return (total / count).float()


def unit(vector: Tensor) -> Tensor:
    """`vector` [1, D], finite and not zero, in fp32 with norm 1. Its squares may be outside of any float's range."""
    exact = vector.double()
    exact = exact / exact.abs().max()
    direction: Tensor = exact / exact.norm(dim=-1, keepdim=True)
    return direction.float()


def digest_of(sha256s: Iterable[str]) -> str:
    """One sha256 for several, whatever their order: that of the sorted lines."""
    return hashlib.sha256("".join(f"{one}\n" for one in sorted(sha256s)).encode()).hexdigest()


def require_fit(aesthetic: Aesthetic, *, clip_space: str | None, dim: int | None) -> None:
    """Raise EmbeddingError unless a model of `clip_space` with `dim` dimensions, None if unknown, can follow it."""
    if dim not in (None, aesthetic.dim):
        raise EmbeddingError(
            f"the aesthetic {aesthetic.name} has {aesthetic.dim} dimensions "
            f"(CLIP space {brief(aesthetic.clip_space or 'not named')}), the model's CLIP space {clip_space} has {dim}"
        )
    if None not in (aesthetic.clip_space, clip_space) and aesthetic.clip_space != clip_space:
        raise EmbeddingError(
            f"the aesthetic {aesthetic.name} was made in the CLIP space {brief(aesthetic.clip_space)}, "
            f"and the model works in {clip_space}: directions of the two can't be compared"
        )


def _read_safetensors(label: str, path: Path) -> tuple[object, dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}
            notes = file.metadata() or {}
    except Exception as error:
        raise EmbeddingError(
            f"{label} is neither a .safetensors file nor a .pt file of torch 1.6 or later: {brief(str(error))}"
        ) from error
    if set(found) != {KEY}:
        shown = ", ".join(f"{brief(key)} {brief(list(tensor.shape))}" for key, tensor in list(found.items())[:3])
        raise EmbeddingError(
            f"{label} holds {len(found)} tensors ({shown or 'none'}), and one named {KEY!r} was expected; "
            "a textual inversion can't be used as an aesthetic"
        )
    return found[KEY], notes


def _checked(label: str, found: object) -> Tensor:
    """The content of a file as [1, D] in its own float type. Raises EmbeddingError."""
    if not isinstance(found, Tensor):
        raise EmbeddingError(f"{label} holds a {type(found).__name__}; {EXPECTED}")
    if found.dtype not in DTYPES:
        raise EmbeddingError(f"{label} holds a tensor of {found.dtype}; {EXPECTED}")
    if found.ndim not in (1, 2) or found.shape[:-1].numel() != 1 or not 1 <= found.shape[-1] <= MAX_DIM:
        raise EmbeddingError(f"{label} holds a tensor {brief(list(found.shape))}; {EXPECTED}")
    vector = found.detach().reshape(1, -1)
    if not vector.isfinite().all():
        raise EmbeddingError(f"{label} holds {int((~vector.isfinite()).sum())} values that are not finite; {EXPECTED}")
    if not vector.any():
        raise EmbeddingError(f"{label} holds only zeros; {EXPECTED}")
    return vector
