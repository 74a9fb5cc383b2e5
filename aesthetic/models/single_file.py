"""A model in a single file, in the layout of the original code: what is in it, by its header alone.

The file is anybody's: only safetensors are opened, which hold tensors and nothing that runs. Nothing here loads a
weight; pipeline.py does, with diffusers.
"""

from collections.abc import Mapping
from pathlib import Path

import safetensors

from ..errors import CheckpointError

__all__ = ["CONVERT", "require_stable_diffusion_1"]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
NEEDED = {
    "UNet": f"{UNET}input_blocks.0.0.weight",
    "VAE": f"{VAE}decoder.conv_in.weight",
    "text encoder": f"{TEXT}embeddings.position_embedding.weight",
}
CHANNELS = 4  # of the latents; what takes more takes a picture as well
# What other files can be told by, the surer signs first.
SIGNS = {
    "hada_w1": "a LoRA of the LoHa kind",
    "lokr_w1": "a LoRA of the LoKr kind",
    "lora": "a LoRA: give it as the input lora, beside a model",
    "control_model.": "a ControlNet",
    "conditioner.embedders.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "emb_params": "a textual inversion",
    "down_blocks.": "part of a model in diffusers' layout: give the folder of all its parts",
    "text_model.encoder": "a text encoder alone",
    "decoder.conv_in": "a VAE alone",
}
CONVERT = (
    "only .safetensors files are opened, since a pickle may run any program. If you trust it, convert it on a "
    "machine that may be lost: in Python, import torch, safetensors.torch; weights = torch.load({!r}, "
    "map_location='cpu', weights_only=True); weights = weights.get('state_dict', weights); "
    "safetensors.torch.save_file({{name: tensor.contiguous().clone() for name, tensor in weights.items() "
    "if isinstance(tensor, torch.Tensor)}}, 'model.safetensors')"
)


def require_stable_diffusion_1(path: Path) -> None:
    """Raise CheckpointError, saying what it is, unless a file is Stable Diffusion 1.x in the original layout."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} was not opened: {CONVERT.format(path.name)}")
    shapes = _shapes(path)
    lacking = [part for part, name in NEEDED.items() if name not in shapes]
    for sign, kind in SIGNS.items():
        if lacking and any(sign in name for name in shapes if not name.startswith((VAE, TEXT))):
            raise CheckpointError(f"{path} is {kind}; Stable Diffusion 1.x was expected")
    if lacking:
        raise CheckpointError(
            f"{path} is not Stable Diffusion 1.x in the original layout: it holds no {' and no '.join(lacking)} "
            f"({NEEDED[lacking[0]]} was looked for)"
        )
    shape = shapes[NEEDED["UNet"]]
    if len(shape) != 4 or shape[1] != CHANNELS:
        raise CheckpointError(
            f"{path} is a model for inpainting or editing, or none: its UNet's first weight has the shape {shape}, and "
            f"{CHANNELS} channels were expected in the second place"
        )


def _shapes(path: Path) -> Mapping[str, list[int]]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    except Exception as error:
        raise CheckpointError(f"{path} is no .safetensors file, or is damaged or cut short: {error}") from error
