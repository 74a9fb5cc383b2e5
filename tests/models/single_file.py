"""The weights of a diffusers snapshot as one file in the original code's layout (latent diffusion, "LDM").

The names are those of diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py, the other way round than
what is tested.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aesthetic.benchmark.random_model import TINY

LAYERS = TINY["unet"]["layers_per_block"]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write(folder: Path, path: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write the UNet, VAE and text encoder of the snapshot in `folder` to `path`."""

    def part(name: str) -> dict[str, Tensor]:
        [file] = (folder / name).glob("*.safetensors")
        return load_file(file)

    tensors = {f"model.diffusion_model.{_unet(name)}": tensor for name, tensor in part("unet").items()}
    for name, tensor in part("vae").items():
        is_linear = "attentions" in name and tensor.ndim == 2  # a convolution of 1 × 1, in the original
        tensors[f"first_stage_model.{_vae(name)}"] = tensor[..., None, None] if is_linear else tensor
    tensors |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in part("text_encoder").items()}
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path)
    return path


def _unet(name: str) -> str:
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    block, rest = _unet_block(name)
    if ".resnets." in name:
        layer, _, kind = rest.partition(".")
        rest = f"{RESNET[layer]}.{kind}"
    return f"{block}.{rest}"


def _unet_block(name: str) -> tuple[str, str]:
    """The original's block of a layer, and the layer's name in it."""
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        return f"middle_block.{2 * int(match[2]) if match[1] == 'resnets' else 1}", match[3]
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name)
    assert match is not None, name
    block, layer = int(match[2]), int(match[4])
    if match[3] == "downsamplers":
        return f"input_blocks.{(LAYERS + 1) * (block + 1)}.0", match[5].replace("conv", "op")
    if match[3] == "upsamplers":
        return f"output_blocks.{(LAYERS + 1) * block + LAYERS}.{1 if block == 0 else 2}", match[5]
    number = (LAYERS + 1) * block + layer + (match[1] == "down")
    place = "input_blocks" if match[1] == "down" else "output_blocks"
    return f"{place}.{number}.{0 if match[3] == 'resnets' else 1}", match[5]


def _vae(name: str) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda match: f"up.{3 - int(match[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"up.{3 - int(match[1])}.upsample", name)
    if "mid_block.attentions.0." in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name
