"""The weights of a diffusers snapshot as one file in the original code's layout (latent diffusion, "LDM").

The names are those of diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py, the other way round than
what is tested.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "text_model.final_ln_": "ln_final",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write(folder: Path, path: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write the UNet, VAE and text encoders of the snapshot in `folder` to `path`."""

    def part(name: str) -> dict[str, Tensor]:
        [file] = (folder / name).glob("*.safetensors")
        return load_file(file)

    unet = json.loads((folder / "unet" / "config.json").read_text())
    tensors = {f"model.diffusion_model.{_unet(name, unet)}": tensor for name, tensor in part("unet").items()}
    for name, tensor in part("vae").items():
        is_linear = "attentions" in name and tensor.ndim == 2  # a convolution of 1 × 1, in the original
        tensors[f"first_stage_model.{_vae(name)}"] = tensor[..., None, None] if is_linear else tensor
    is_xl = (folder / "text_encoder_2").is_dir()
    first = "conditioner.embedders.0" if is_xl else "cond_stage_model"
    tensors |= {
        f"{first}.transformer.text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in part("text_encoder").items()
    }
    if is_xl:
        second = _open_clip(part("text_encoder_2"))
        tensors |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path)
    return path


def _open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a CLIPTextModelWithProjection by OpenCLIP's names, with query, key and value in one."""
    found = {"text_projection": tensors["text_projection.weight"].T}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name):
            three = [tensors[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(three)
        elif not re.search(r"[kv]_proj\.|text_projection", name):
            found[functools.reduce(lambda name, pair: name.replace(*pair), OPEN_CLIP.items(), name)] = tensor
    return found


def _unet(name: str, config: dict[str, Any]) -> str:
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    block, rest = _unet_block(name, config)
    if ".resnets." in name:
        layer, _, kind = rest.partition(".")
        rest = f"{RESNET[layer]}.{kind}"
    return f"{block}.{rest}"


def _unet_block(name: str, config: dict[str, Any]) -> tuple[str, str]:
    """The original's block of a layer, and the layer's name in it."""
    layers = config["layers_per_block"]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        return f"middle_block.{2 * int(match[2]) if match[1] == 'resnets' else 1}", match[3]
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name)
    assert match is not None, name
    block, layer = int(match[2]), int(match[4])
    if match[3] == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0", match[5].replace("conv", "op")
    if match[3] == "upsamplers":
        last = 2 if "CrossAttn" in config["up_block_types"][block] else 1
        return f"output_blocks.{(layers + 1) * block + layers}.{last}", match[5]
    number = (layers + 1) * block + layer + (match[1] == "down")
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
