"""An aesthetic: one vector in a CLIP space, read from a file, made from features, checked, and saved.

Two kinds of file: .pt as the original research code saved them (a bare tensor [D] or [1, D] of any float
type, from any device), and .safetensors with one tensor named "aesthetic" and notes on where it came from.
Both are read as if an enemy had written them. Which CLIP made an aesthetic matters: only a model that shares
its space can follow it. This file knows no model: features come in as tensors.
"""

import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as brief

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import EmbeddingError

__all__ = ["Aesthetic", "digest_of", "mean", "read", "require_fit", "save", "unit"]

MAX_BYTES = 10**6  # of a file; the widest CLIP in use has 1280 dimensions, 10 kB in fp64
MAX_WIDTH = 8192
KEY = "aesthetic"


@dataclass(frozen=True, kw_only=True, eq=False)
class Aesthetic:
    """A direction in a CLIP space.

    vector: [1, D], fp32, unit norm, on the CPU.
    name:   what people call it; for a file or pictures, the start of its sha256.
    sha256: of the file that it was read from, or of the pictures it was made from (see `digest_of`).
    source: where it came from: a name, a file, or pictures.
    space:  the CLIP space it lives in; None where the file does not say.
    notes:  what else the file says of itself.
    """

    vector: Tensor
    name: str
    sha256: str
    source: str = "file"
    space: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """D, the number of dimensions."""
        return self.vector.shape[-1]


def read(path: Path, name: str | None = None) -> Aesthetic:
    """The aesthetic in a .pt or .safetensors file; its first bytes say which of the two it is.

    Raises EmbeddingError, saying what was found and what was expected, for anything but one vector of
    finite floats that are not all zero.
    """
    data = _contents(path)
    is_zip = data.startswith(b"PK\x03\x04")
    vector, notes = _read_pt(path.name, data) if is_zip else _read_safetensors(path)
    sha256 = hashlib.sha256(data).hexdigest()
    return Aesthetic(
        vector=unit(_checked(path.name, vector)),
        name=name or sha256[:12],
        sha256=sha256,
        space=notes.get("space"),
        notes=notes,
    )


def save(path: Path, vector: Tensor, notes: Mapping[str, str]) -> None:
    """Write `vector` [1, D] as .safetensors with `notes`; under "space" they name its CLIP space."""
    safetensors.torch.save_file({KEY: vector.float().contiguous()}, path, metadata=dict(notes))


def mean(features: Iterable[Tensor]) -> Tensor:
    """The mean [1, D], fp32, of batches [n, D] of raw CLIP image features, as the original script took it.

    The features are not normalised first. Summed in fp64, so that the batches make no difference.
    """
    total, count = torch.zeros(()), 0
    for batch in features:
        total = total + batch.double().cpu().sum(dim=0, keepdim=True)
        count += len(batch)
    return (total / count).float()


def unit(vector: Tensor) -> Tensor:
    """`vector` [1, D] in fp32 with norm 1. The norm is taken in fp64: fp16 files reach its limits."""
    exact = vector.double()
    direction: Tensor = exact / exact.norm(dim=-1, keepdim=True)
    return direction.float()


def digest_of(sha256s: Iterable[str]) -> str:
    """One sha256 for many pictures: of their own hexadecimal ones, a line each, in order."""
    return hashlib.sha256("".join(f"{one}\n" for one in sha256s).encode()).hexdigest()


def require_fit(aesthetic: Aesthetic, *, space: str, width: int) -> None:
    """Raise EmbeddingError unless a model of CLIP space `space`, `width` dimensions, can follow `aesthetic`."""
    if aesthetic.width != width:
        raise EmbeddingError(
            f"the aesthetic {aesthetic.name} has {aesthetic.width} dimensions "
            f"(CLIP space {brief(aesthetic.space)}), the model's CLIP space {space} has {width}"
        )
    if aesthetic.space is not None and aesthetic.space != space:
        raise EmbeddingError(
            f"the aesthetic {aesthetic.name} was made in the CLIP space {brief(aesthetic.space)}, "
            f"and the model works in {space}: their directions have nothing to do with one another"
        )


def _contents(path: Path) -> bytes:
    if not path.is_file():
        raise EmbeddingError(f"there is no file {path}; a .pt or .safetensors file was expected")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise EmbeddingError(f"{path.name} has {path.stat().st_size / 1e6:.1f} MB; an aesthetic has a few kB")
    if not data:
        raise EmbeddingError(f"{path.name} is empty; a .pt or .safetensors file was expected")
    return data


def _read_pt(name: str, data: bytes) -> tuple[object, dict[str, str]]:
    """What torch.save wrote, read with weights_only: a pickle with code in it is refused, and nothing runs."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as records:
            if sum(record.file_size for record in records.infolist()) > MAX_BYTES:
                raise EmbeddingError(f"{name} unpacks to more than {MAX_BYTES // 1000} kB; an aesthetic has a few")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        raise EmbeddingError(
            f"{name} holds a pickle that is more than a tensor, and it was not opened; "
            "a tensor [D] or [1, D] was expected"
        ) from error
    except EmbeddingError:
        raise
    except Exception as error:  # whatever a damaged file makes of torch's reader
        raise EmbeddingError(f"{name} is no file of torch.save's, or is damaged: {error}") from error


def _read_safetensors(path: Path) -> tuple[object, dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}
            notes = file.metadata() or {}
    except Exception as error:
        raise EmbeddingError(
            f"{path.name} is neither a .safetensors file nor a .pt file of torch 1.6 or later: {error}"
        ) from error
    if set(found) != {KEY}:
        shown = ", ".join(f"{brief(key)} {list(tensor.shape)}" for key, tensor in list(found.items())[:3])
        raise EmbeddingError(
            f"{path.name} holds {len(found)} tensors ({shown}), perhaps a textual inversion; "
            f"an aesthetic is one tensor named {KEY!r}"
        )
    return found[KEY], notes


def _checked(name: str, found: object) -> Tensor:
    """What a file held, as [1, D] in its own float type."""
    expected = "one tensor [D] or [1, D] of finite floats that are not all zero was expected"
    if isinstance(found, dict):
        keys = ", ".join(map(brief, list(found)[:3]))
        raise EmbeddingError(f"{name} holds a dict ({keys}), perhaps a textual inversion; {expected}")
    if not isinstance(found, Tensor):
        raise EmbeddingError(f"{name} holds a {type(found).__name__}; {expected}")
    if found.layout != torch.strided or found.is_quantized or not found.is_floating_point():
        raise EmbeddingError(f"{name} holds a {found.layout} tensor of {found.dtype}; {expected}")
    if found.ndim not in (1, 2) or found.shape[:-1].numel() != 1 or not 1 <= found.shape[-1] <= MAX_WIDTH:
        raise EmbeddingError(f"{name} holds a tensor {list(found.shape)}; {expected}")
    vector = found.detach().reshape(1, -1)
    if not vector.isfinite().all():
        raise EmbeddingError(f"{name} holds {int((~vector.isfinite()).sum())} values that are not finite; {expected}")
    if not vector.any():
        raise EmbeddingError(f"{name} holds nothing but zeros; {expected}")
    return vector
