"""A model with a LoRA in it, beside the one without, which stays as it is: nothing has to be undone afterwards.

The text encoder is copied and its LoRA added to the copy's weights, so that what is personalised is an ordinary text
encoder with the parameters that the paper's method moves. The UNet, six times as large, is not copied: a second
structure of layers shares its weights, and diffusers' loader puts the LoRA beside them, where each call adds it. That
costs a little time a call, and no memory but the file's.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.peft_utils import set_weights_and_activate_adapters
from torch import Tensor, nn

from . import lora_file
from .loading import Model, in_precision
from .lora_file import Pair

__all__ = ["apply_lora"]

ADAPTER = "lora"


def apply_lora(model: Model, path: Path, scale: float) -> Model:
    """`model` with the LoRA in a file at `scale`; 0 leaves it as it is, once the file has been found to fit.

    Raises CheckpointError, before anything is copied, if it does not.
    """
    added = lora_file.load_lora(path)
    for_unet, for_text = lora_file.fit(added, model.pipeline.unet, model.encoder.text_model)
    grafted = replace(model, lora=added.sha256)
    if scale == 0:
        return grafted
    parts = {}
    if for_unet:
        parts["unet"] = _adapted(model.pipeline.unet, for_unet, scale)
    if for_text:
        grafted = replace(grafted, encoder=_merged(model.encoder, for_text, scale))
        parts["text_encoder"] = in_precision(grafted.encoder.text_model, model.pipeline.text_encoder.dtype)
    components = {**model.pipeline.components, **parts}
    return replace(grafted, pipeline=type(model.pipeline)(**components, requires_safety_checker=False))


@torch.no_grad()
def _merged(encoder: Any, pairs: Mapping[str, Pair], scale: float) -> Any:
    """A copy of the encoder (fp32) with the changes in its weights.

    Not by diffusers' loader, which drops the alpha of single layers here: it looks them up by names that begin with
    text_model., as the layers' own did up to transformers 4.
    """
    changed = copy.deepcopy(encoder)
    for name, pair in pairs.items():
        weight = changed.text_model.get_submodule(name).weight
        down, up = (factor.to(weight.device, weight.dtype).flatten(1) for factor in (pair.down, pair.up))
        weight += (up @ down).view_as(weight) * (pair.alpha / pair.rank * scale)
    return changed


def _adapted(unet: Any, pairs: Mapping[str, Pair], scale: float) -> Any:
    """The UNet's structure once more, on the same weights, with the changes beside them.

    Under the layers' own names: converting kohya's, diffusers loses the alpha of single attentions as well.
    """
    shared = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in unet.parameters()}
    shared |= {id(buffer): buffer for buffer in unet.buffers()}
    changed = copy.deepcopy(unet, shared)
    factors: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        factors |= {f"unet.{name}.lora_A.weight": pair.down, f"unet.{name}.lora_B.weight": pair.up}
    diffusers.StableDiffusionPipeline.load_lora_into_unet(
        factors,
        network_alphas={f"unet.{name}.alpha": pair.alpha for name, pair in pairs.items()},
        unet=changed,
        adapter_name=ADAPTER,
        low_cpu_mem_usage=False,  # which patches torch, for all threads, as long as it takes
    )
    # The UNet's own set_adapters counts the layers of its blocks, and can't where they have different numbers.
    set_weights_and_activate_adapters(changed, [ADAPTER], [scale])
    return changed
