"""Tell the kind of a weights file by the names of its tensors, for messages about a file of the wrong kind."""

from collections.abc import Iterable

__all__ = ["CONVERT", "LORA", "MODEL", "NUMBERED", "SIGNS", "TEXTUAL_INVERSION", "XL", "XL_LORA", "kind_of"]

CONVERT = (
    "only .safetensors files are opened, since a pickle may run any program. If you trust it, convert it on a "
    "machine that may be lost: in Python, import torch, safetensors.torch; weights = torch.load({!r}, "
    "map_location='cpu', weights_only=True); weights = weights.get('state_dict', weights); "
    "safetensors.torch.save_file({{name: tensor.contiguous().clone() for name, tensor in weights.items() "
    "if isinstance(tensor, torch.Tensor)}}, 'model.safetensors')"
)
LORA = "a LoRA: give it as the input lora, beside a model"
MODEL = "a whole model: give it as AESTHETIC_MODEL"
NUMBERED = "a LoRA of cloneofsimo's lora, which has numbers in place of the names of layers"
TEXTUAL_INVERSION = "a textual inversion"
XL = "Stable Diffusion XL"
XL_LORA = f"a LoRA for {XL}"
# Parts of a tensor's name, and the kind of file that has them. The surer signs come first.
SIGNS = {
    "hada_w": "a LoHa",
    "lokr_w": "a LoKr",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "lora_mid": "a LoCon with three factors a layer",
    "oft_": "an OFT",
    "lora_te2_": XL_LORA,
    "text_encoder_2.": XL_LORA,
    "lora_unet_input_blocks_": XL_LORA,
    "lora_unet_middle_block_": XL_LORA,
    "lora_unet_output_blocks_": XL_LORA,
    "lora_controlnet": "a Control-LoRA",
    "control_model.": "a ControlNet",
    "conditioner.embedders.0.model.": f"the refiner of {XL}",
    "conditioner.embedders.": XL,
    "cond_stage_model.model.": "Stable Diffusion 2",
    "joint_blocks": "for Stable Diffusion 3",
    "double_blocks": "for Flux",
    "single_transformer_blocks": "for Flux",
    "motion_modules": "for AnimateDiff",
    "unet.input_blocks.": "a LoRA in OMI's format, with the original code's layers: save it with those of kohya",
    ".base_layer.": "a whole model with a LoRA in it: save the LoRA alone",
    ".w_norm": "a LyCORIS with changes of normalization layers",
    ":0:up": NUMBERED,
    "bundle_emb.": "a LoRA with a textual inversion in it: train it without, or save the two apart",
    "model.diffusion_model.": MODEL,
    ".diff": "whole differences of weights",
    "lora": LORA,
    "emb_params": TEXTUAL_INVERSION,
    "clip_g": "a textual inversion for Stable Diffusion XL",
    "down_blocks.": "part of a model in diffusers' layout: give the folder of all its parts",
    "text_model.encoder": "a text encoder alone",
    "decoder.conv_in": "a VAE alone",
}


def kind_of(names: Iterable[str]) -> str | None:
    """The kind of a file with tensors of these names; None if unknown."""
    known = list(names)
    return next((kind for sign, kind in SIGNS.items() if any(sign in name for name in known)), None)
