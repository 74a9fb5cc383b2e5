"""Apply a LoRA to a model: the result is a second model, and the first one is not changed.

The LoRA is merged into a copy of the text encoder, so that the personalization trains the same parameters as without a
LoRA. The UNet, six times as large, is not copied: a second set of modules shares its weights, and diffusers' loader
adds the LoRA beside them, for a little time in each call.
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


def apply_lora(model: Model, path: Path, scale: float) -> Model:
    """`model` with the LoRA in a file at `scale`. With 0 the weights stay as they are, but the file is checked.

    Raises CheckpointError, before anything is copied, if the file does not fit.
    """
    added = lora_file.load_lora(path)
    for_unet, for_text = lora_file.fit(added, model.pipeline.unet, model.encoder.text_model)
    with_lora = replace(model, lora=added.sha256)
    if scale == 0:
        return with_lora
    parts = {}
    if for_unet:
        parts["unet"] = _adapted(model.pipeline.unet, for_unet, scale)
    if for_text:
        with_lora = replace(with_lora, encoder=_merged(model.encoder, for_text, scale))
        parts["text_encoder"] = in_precision(with_lora.encoder.text_model, model.pipeline.text_encoder.dtype)
    components = {**model.pipeline.components, **parts}
    return replace(with_lora, pipeline=type(model.pipeline)(**components, requires_safety_checker=False))


@torch.no_grad()
def _merged(encoder: Any, pairs: Mapping[str, Pair], scale: float) -> Any:
    """A copy of the encoder (fp32) with the LoRA merged into its weights.

    diffusers' loader would drop the alpha of single layers: it looks for names that begin with text_model., as in
    transformers 4.
    """
    changed = copy.deepcopy(encoder)
    for name, pair in pairs.items():
        weight = changed.text_model.get_submodule(name).weight
        down, up = (factor.to(weight.device, weight.dtype).flatten(1) for factor in (pair.down, pair.up))
        weight += (up @ down).view_as(weight) * (pair.alpha / pair.rank * scale)
    return changed


def _adapted(unet: Any, pairs: Mapping[str, Pair], scale: float) -> Any:
    """A second UNet on the same weights, with the LoRA beside them.

    The names are the layers' own: in converting kohya's names, diffusers loses the alpha of single attentions.
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
        adapter_name="lora",
        low_cpu_mem_usage=False,  # which would patch torch for all threads meanwhile
    )
    # UNet2DConditionModel.set_adapters fails where blocks have different numbers of layers.
    set_weights_and_activate_adapters(changed, ["lora"], [scale])
    return changed
