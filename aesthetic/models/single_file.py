"""Check the header of a model in a single file, in the layout of the original code. loading.py loads its weights."""

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as brief

import safetensors

from ..errors import CheckpointError, printable
from .file_kind import CONVERT, MODEL, XL, kind_of

__all__ = ["require_stable_diffusion_1"]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
NEEDED = {
    "UNet": f"{UNET}input_blocks.0.0.weight",
    "VAE": f"{VAE}decoder.conv_in.weight",
    "text encoder": f"{TEXT}embeddings.position_embedding.weight",
}
CHANNELS = 4  # of the latents; models for inpainting and editing take an image beside them


def require_stable_diffusion_1(path: Path) -> None:
    """Raise CheckpointError, with the kind of the file, unless it is Stable Diffusion 1.x in this layout."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} was not opened: {CONVERT.format(path.name)}")
    shapes = _shapes(path)
    lacking = [part for part, name in NEEDED.items() if name not in shapes]
    kind = kind_of(name for name in shapes if not name.startswith((VAE, TEXT)))
    if lacking and kind not in (None, MODEL):
        remedy = ""
        if kind == XL:
            remedy = (
                f". With diffusers, StableDiffusionXLPipeline.from_single_file({str(path)!r}).save_pretrained('xl') "
                "writes a folder that can be given instead"
            )
        raise CheckpointError(f"{path} is {kind}; Stable Diffusion 1.x was expected{remedy}")
    if lacking:
        raise CheckpointError(
            f"{path} is not Stable Diffusion 1.x in the original layout: it holds no {' and no '.join(lacking)} "
            f"({NEEDED[lacking[0]]} was looked for)"
        )
    shape = shapes[NEEDED["UNet"]]
    if len(shape) != 4 or shape[1] != CHANNELS:
        raise CheckpointError(
            f"{path} is not a text-to-image model, but perhaps for inpainting or editing: its UNet's first weight has "
            f"the shape {brief(shape)}, and {CHANNELS} channels were expected in the second place"
        )


def _shapes(path: Path) -> Mapping[str, list[int]]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a .safetensors file, or is damaged or cut short: {printable(str(error))}"
        ) from error
