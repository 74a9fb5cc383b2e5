"""Check the header of a model in a single file, in the layout of the original code. loading.py loads its weights."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import repr as brief

import safetensors

from ..errors import CheckpointError, printable
from .file_kind import CONVERT, MODEL, XL, kind_of

__all__ = ["is_xl", "require_stable_diffusion"]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
TEXTS_XL = "conditioner.embedders."
POSITIONS = "embeddings.position_embedding.weight"
BOTH = {"UNet": f"{UNET}input_blocks.0.0.weight", "VAE": f"{VAE}decoder.conv_in.weight"}
NEEDED = BOTH | {"text encoder": TEXT + POSITIONS}
NEEDED_XL = BOTH | {
    "text encoder": f"{TEXTS_XL}0.transformer.text_model.{POSITIONS}",
    "second text encoder": f"{TEXTS_XL}1.model.positional_embedding",
}
OTHER_NOISE = {"v_pred": "a v-prediction model", "edm_mean": "Playground 2.5", "edm_vpred.sigma_max": "an EDM model"}
MAX_TENSORS = 10**5
FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")
CHANNELS = 4  # of the latents; models for inpainting and editing take an image beside them
Header = Mapping[str, tuple[list[int], str]]


def is_xl(path: Path) -> bool:
    """Whether a file is Stable Diffusion XL. Raises CheckpointError if it can't be read."""
    return _is_xl(_header(path))


def require_stable_diffusion(path: Path) -> None:
    """Raise CheckpointError, with the kind of the file, unless it is Stable Diffusion 1.x or XL in this layout."""
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path} was not opened: {CONVERT.format(path.name)}")
    header = _header(path)
    kind = kind_of(name for name in header if not name.startswith((VAE, TEXT)))
    needed, family = (NEEDED_XL, XL) if _is_xl(header) else (NEEDED, "Stable Diffusion 1.x")
    lacking = [part for part, name in needed.items() if name not in header]
    if lacking and kind not in (None, MODEL, XL):
        raise CheckpointError(f"{path} is {kind}; Stable Diffusion 1.x or XL was expected")
    if lacking:
        raise CheckpointError(
            f"{path} is not {family} in the original layout: it holds no {' and no '.join(lacking)} "
            f"({needed[lacking[0]]} was looked for)"
        )
    _require_values(path, header)
    shape, _ = header[needed["UNet"]]
    if len(shape) != 4 or shape[1] != CHANNELS:
        raise CheckpointError(
            f"{path} is not a text-to-image model, but perhaps for inpainting or editing: its UNet's first weight has "
            f"the shape {brief(shape)}, and {CHANNELS} channels were expected in the second place"
        )


def _require_values(path: Path, header: Header) -> None:
    """Raise CheckpointError for a model that predicts something else than noise, and for a quantized one."""
    for name in OTHER_NOISE.keys() & header.keys():
        raise CheckpointError(f"{path} is {OTHER_NOISE[name]}; a model that predicts noise was expected")
    for name, (_, dtype) in header.items():
        is_weight = name.startswith((UNET, VAE, TEXT, TEXTS_XL)) and not name.endswith("position_ids")
        if is_weight and dtype not in FLOATS:
            raise CheckpointError(f"{path} is quantized, or damaged: {brief(name)} is of {dtype}")


def _is_xl(names: Iterable[str]) -> bool:
    return any(name.startswith(TEXTS_XL) for name in names)


def _header(path: Path) -> Header:
    """Shape and dtype of every tensor. Raises CheckpointError."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            count = len(file.keys())
            slices = {name: file.get_slice(name) for name in file.keys()} if count <= MAX_TENSORS else {}
            header = {name: (list(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a .safetensors file, or is damaged or cut short: {printable(str(error))}"
        ) from error
    if count > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {count:,} tensors; a model holds a few thousand")
    return header
