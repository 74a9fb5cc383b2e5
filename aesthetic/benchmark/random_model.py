"""Models with random weights, in the shapes of Stable Diffusion 1.5 or XL, or of a tiny model with the blocks of 1.5.

Speed and memory do not depend on the values of weights, so benchmarks need no download. The images are noise.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..models import clip, loading
from ..models.checkpoint import Snapshot
from ..models.loading import XL, Model
from ..models.penultimate import PenultimateTextModel, PenultimateTextModelWithProjection

__all__ = ["SD15", "TINY", "build", "vocabulary"]

Config = dict[str, Any]
# Stable Diffusion 1.5 as in the files of its snapshot, plus the vision tower of the safety checker, which is CLIP's;
# and how the tiny model differs. The tiny one's CLIP space is narrower than its hidden states, to tell the two apart.
SHAPES: dict[str, dict[str, Config]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SHAPES["sdxl"] = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in XL.glob("*/*.json")}
SD15, TINY = SHAPES["sd15"], SHAPES["tiny"]


@clip.quiet_loading()
def build(size: str, device: torch.device) -> Model:
    """A model of size "sd15", "sdxl" or "tiny", in the precisions of `loading.load`.

    Always the same on one kind of device.
    """
    torch.manual_seed(0)
    own, is_xl = SHAPES[size], size == "sdxl"
    shapes = {part: SD15.get(part, {}) | own.get(part, {}) for part in SD15 | own}
    dtype = loading.precision(device)
    tokens, merges = vocabulary()
    config = transformers.CLIPTextConfig(**shapes["text_encoder"])
    encoder = _made(transformers.CLIPTextModelWithProjection, config, torch.float32, device)
    if is_xl:
        encoder.text_model = _made(PenultimateTextModel, config, torch.float32, device)
    tokenizer = transformers.CLIPTokenizer(
        vocab=tokens, merges=[tuple(pair.split()) for pair in merges], model_max_length=77
    )
    pipeline = (diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline)(
        unet=_made(diffusers.UNet2DConditionModel.from_config, shapes["unet"], dtype, device),
        vae=_made(diffusers.AutoencoderKL.from_config, shapes["vae"], torch.float32 if is_xl else dtype, device),
        text_encoder=loading.in_precision(encoder.text_model, dtype),
        scheduler=getattr(diffusers, shapes["scheduler"]["_class_name"]).from_config(shapes["scheduler"]),
        tokenizer=tokenizer,
        **(_second_encoder if is_xl else _safety_checker)(shapes, tokenizer, dtype, device),
    )
    return Model(
        snapshot=Snapshot(
            name=f"random weights, {size}",
            revision="local",
            bundled=False,
            clip_space=None,
            folder=Path(),
            clip=None,
        ),
        pipeline=pipeline,
        encoder=encoder,
        scheduler=shapes["scheduler"],
        clip_space="random",
        vision=None,
    )


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Tokens and merges of a byte-pair encoding like CLIP's, with all single bytes and three words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]  # stand for the bytes that are not printable
    letters = [chr(code) for code in printable + others]
    merges = ["c a", "ca t</w>", "d o", "do g</w>", "t h", "th e</w>"]
    words = [merge.replace(" ", "") for merge in merges]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *words, *ends]
    return {token: i for i, token in enumerate(tokens)}, merges


def _safety_checker(shapes: Mapping[str, Config], _: Any, dtype: torch.dtype, device: torch.device) -> Config:
    """Its thresholds are all 1, which no cosine exceeds: it flags nothing."""
    vision, side = shapes["vision"], shapes["vision"]["image_size"]
    text, dim = shapes["text_encoder"], vision["projection_dim"]
    both = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)
    checker = _made(StableDiffusionSafetyChecker, both, dtype, device)
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    return {"safety_checker": checker, "feature_extractor": processor}


def _second_encoder(shapes: Mapping[str, Config], tokenizer: Any, dtype: torch.dtype, device: torch.device) -> Config:
    """That of Stable Diffusion XL."""
    config = transformers.CLIPTextConfig(**shapes["text_encoder_2"])
    encoder = _made(PenultimateTextModelWithProjection, config, dtype, device)
    return {"text_encoder_2": encoder, "tokenizer_2": tokenizer, "add_watermarker": False}


def _made(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    with device:
        return kind(config).to(dtype).eval().requires_grad_(False)
