"""The shapes of Stable Diffusion 1.5 and of a toy with all of its layers, and a model of either with random weights.

Neither speed nor memory depends on what the weights are: such a model measures what the real one takes, without a
download and without a file. What it draws is noise.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..models import clip, loading
from ..models.checkpoint import Snapshot
from ..models.loading import Model

__all__ = ["SD15", "SIZES", "TINY", "build", "vocabulary"]

# As in the files of the snapshot, which has no word of the safety checker's vision tower: it is CLIP's own.
SD15: dict[str, dict[str, Any]] = {
    "scheduler": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    },
    "vision": {
        "hidden_act": "quick_gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "projection_dim": 768,
    },
}

# What the tiny one has otherwise. Its CLIP space is not as wide as its hidden states; the real one's happens to be.
TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "attention_head_dim": 1,
        "block_out_channels": [8, 8, 16, 16],
        "cross_attention_dim": 32,
        "norm_num_groups": 4,
    },
    "vae": {"block_out_channels": [4, 4, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "projection_dim": 24,
        "vocab_size": 600,
    },
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 8,
        "image_size": 32,
        "projection_dim": 24,
    },
}
SIZES: dict[str, dict[str, dict[str, Any]]] = {"sd15": {}, "tiny": TINY}


@clip.quiet_loading()
def build(size: str, device: torch.device) -> Model:
    """A model of one of `SIZES` with random weights, made on `device` in the precisions in which it would be loaded.

    Always the same weights, on a device of a kind.
    """
    torch.manual_seed(0)
    shapes = {part: config | SIZES[size].get(part, {}) for part, config in SD15.items()}
    dtype = loading.precision(device)
    text, vision = shapes["text_encoder"], shapes["vision"]
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=vision["projection_dim"])
    encoder = _made(
        transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig(**text), torch.float32, device
    )
    drawing = diffusers.StableDiffusionPipeline(
        unet=_made(diffusers.UNet2DConditionModel.from_config, shapes["unet"], dtype, device),
        vae=_made(diffusers.AutoencoderKL.from_config, shapes["vae"], dtype, device),
        # Its random thresholds are all 1, and no cosine is higher: it lets everything through.
        safety_checker=_made(StableDiffusionSafetyChecker, clip, dtype, device),
        text_encoder=loading.in_precision(encoder.text_model, dtype),
        scheduler=diffusers.PNDMScheduler.from_config(shapes["scheduler"]),
        tokenizer=_tokenizer(),
        feature_extractor=CLIPImageProcessorPil(
            size={"shortest_edge": vision["image_size"]}, crop_size=vision["image_size"]
        ),
    )
    return Model(
        snapshot=_snapshot(f"random weights, {size}"),
        pipeline=drawing,
        encoder=encoder,
        scheduler=shapes["scheduler"],
        clip_space="random",
        vision=None,
    )


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Tokens and merges of a byte-pair encoding like CLIP's, with all single bytes and three words in it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]  # bytes that such a file can't hold as they are
    letters = [chr(code) for code in printable + others]
    merges = ["c a", "ca t</w>", "d o", "do g</w>", "t h", "th e</w>"]
    words = [merge.replace(" ", "") for merge in merges]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *words, *ends]
    return {token: i for i, token in enumerate(tokens)}, merges


def _made(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    with device:
        return kind(config).to(dtype).eval().requires_grad_(False)


def _tokenizer() -> Any:
    tokens, merges = vocabulary()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return transformers.CLIPTokenizer(vocab=tokens, merges=pairs, model_max_length=77)


def _snapshot(name: str) -> Snapshot:
    return Snapshot(
        name=name,
        revision="local",
        bundled=False,
        clip_space=None,
        folder=Path(),
        clip=None,
        openai_clip_space="random",
    )
