"""LoRA files for any model, with random numbers, in every layout; and the same changes by hand.

Kohya's names are those of kohya-ss/sd-scripts networks/lora.py; the others those of diffusers, of today and of 2023,
and of peft.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aesthetic.models.loading import Model

ALPHAS = (1.0, 4.0, 3.0)  # in turn, as are the ranks
RANKS = (2, 4, 3)


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of a layer in a file; alpha is the rank if None."""

    down: Tensor
    up: Tensor
    alpha: float | None


Changes = Mapping[tuple[str, str], Change]  # by part, "unet" or "text_encoder", and layer


def changes(
    model: Model, *, parts: tuple[str, ...] = ("unet", "text_encoder"), convolutions: bool = True, alike: bool = False
) -> dict[tuple[str, str], Change]:
    """Changes of all linear layers, and of all convolutions; the same ones each time.

    alike: all of one rank and one alpha.
    """
    source = torch.Generator().manual_seed(3)
    found: dict[tuple[str, str], Change] = {}
    modules = {"unet": model.pipeline.unet, "text_encoder": model.encoder.text_model}
    for part in parts:
        for layer, module in modules[part].named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d) if convolutions else nn.Linear):
                continue
            weight, turn = module.weight, 0 if alike else len(found) % 3
            rank = RANKS[turn]
            down = torch.randn(rank, *weight.shape[1:], generator=source)
            up = torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=source)
            scale = weight.detach().std() / (up.flatten(1) @ down.flatten(1)).std()
            found[part, layer] = Change(down=down, up=up * scale, alpha=ALPHAS[turn])
    return found


def without_alpha(given: Changes) -> dict[tuple[str, str], Change]:
    """The same changes where alpha is the rank."""
    return {place: replace(change, alpha=None) for place, change in given.items()}


def kohya(part: str, layer: str) -> tuple[str, str, str, str]:
    """The names of a layer's down, up and alpha in a file."""
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
    name = prefix + layer.replace(".", "_")
    return name, f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


def peft(part: str, layer: str) -> tuple[str, str, str, str]:
    """Likewise, as diffusers writes them today."""
    name = f"{part}.{layer}" if part == "unet" else f"{part}.text_model.{layer}"
    return name, f"{name}.lora_A.weight", f"{name}.lora_B.weight", f"{name}.alpha"


def dotted(part: str, layer: str) -> tuple[str, str, str, str]:
    """Likewise, as diffusers wrote them in between."""
    name = f"{part}.{layer}" if part == "unet" else f"{part}.text_model.{layer}"
    kind = "lora" if part == "unet" else "lora_linear_layer"
    return name, f"{name}.{kind}.down.weight", f"{name}.{kind}.up.weight", f"{name}.alpha"


def old(part: str, layer: str) -> tuple[str, str, str, str]:
    """Likewise, as diffusers wrote attentions at first, and no other layers, and no alpha."""
    if part == "unet":
        block, _, last = layer.removesuffix(".0").rpartition(".")
        name = f"unet.{block}.processor.{last}_lora"
    else:
        block, _, last = layer.rpartition(".")
        name = f"text_encoder.text_model.{block}.to_{last.removesuffix('_proj')}_lora"
    return name, f"{name}.down.weight", f"{name}.up.weight", ""


def te1(part: str, layer: str) -> tuple[str, str, str, str]:
    """Likewise, as diffusers converts its own to kohya's, and as other trainers number the text encoder."""
    found = [name.replace("lora_te_", "lora_te1_") for name in kohya(part, layer)]
    return found[0], found[1], found[2], found[3]


def unnamed(part: str, layer: str) -> tuple[str, str, str, str]:
    """Likewise, as diffusers writes one part of a model, without its name."""
    name, down, up, alpha = (each.removeprefix(f"{part}.") for each in peft(part, layer))
    return name, down, up, alpha


def unnamed_old(part: str, layer: str) -> tuple[str, str, str, str]:
    """Likewise, as diffusers wrote it at first."""
    name, down, up, alpha = (each.removeprefix(f"{part}.") for each in old(part, layer))
    return name, down, up, alpha


def wrapped(part: str, layer: str) -> tuple[str, str, str, str]:
    """Likewise, as peft names the weights in its model, with the name of the adapter."""
    name = f"base_model.model.{layer}" if part == "unet" else f"base_model.model.text_model.{layer}"
    return name, f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight", f"{name}.alpha"


def write(
    path: Path,
    given: Changes,
    *,
    names: Callable[[str, str], tuple[str, str, str, str]] = kohya,
    dtype: torch.dtype = torch.float32,
    notes: dict[str, str] | None = None,
) -> Path:
    """Write a file, with notes such as a trainer leaves there."""
    tensors: dict[str, Tensor] = {}
    for (part, layer), change in given.items():
        _, down, up, alpha = names(part, layer)
        tensors |= {down: change.down.to(dtype).contiguous(), up: change.up.to(dtype).contiguous()}
        if change.alpha is not None:
            tensors[alpha] = torch.tensor(change.alpha, dtype=dtype)
    save_file(tensors, path, metadata={"ss_network_module": "networks.lora"} if notes is None else notes)
    return path


def by_hand(model: Model, given: Changes, scale: float) -> Model:
    """The model with W + scale · alpha / rank · up · down in place of W, in all of it."""
    pipeline, encoder = copy.copy(model.pipeline), copy.deepcopy(model.encoder)
    pipeline.register_modules(unet=copy.deepcopy(model.pipeline.unet), text_encoder=encoder.text_model)
    parts = {"unet": pipeline.unet, "text_encoder": encoder.text_model}
    for (part, layer), change in given.items():
        weight, rank = parts[part].get_submodule(layer).weight, len(change.down)
        alpha = rank if change.alpha is None else change.alpha
        whole = change.up.double().flatten(1) @ change.down.double().flatten(1)
        weight.data = (weight.double() + scale * alpha / rank * whole.reshape(weight.shape)).to(weight.dtype)
    return replace(model, pipeline=pipeline, encoder=encoder)
