"""Models with random weights, in the shapes of Stable Diffusion 1.5 or of a tiny model with the same layers.

Speed and memory do not depend on the values of weights, so benchmarks need no download. The images are noise.
"""

import json
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

__all__ = ["SD15", "TINY", "build", "vocabulary"]

Config = dict[str, Any]
# Stable Diffusion 1.5 as in the files of its snapshot, plus the vision tower of the safety checker, which is CLIP's;
# and how the tiny model differs. The tiny one's CLIP space is narrower than its hidden states, to tell the two apart.
SHAPES: dict[str, dict[str, Config]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SD15, TINY = SHAPES["sd15"], SHAPES["tiny"]


@clip.quiet_loading()
def build(size: str, device: torch.device) -> Model:
    """A model of size "sd15" or "tiny", in the precisions of `loading.load`: always the same on one kind of device."""
    torch.manual_seed(0)
    shapes = {part: config | (TINY.get(part, {}) if size == "tiny" else {}) for part, config in SD15.items()}
    dtype = loading.precision(device)
    tokens, merges = vocabulary()
    text, vision = shapes["text_encoder"], shapes["vision"]
    side = vision["image_size"]
    both = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=vision["projection_dim"])
    config = transformers.CLIPTextConfig(**text)
    encoder = _made(transformers.CLIPTextModelWithProjection, config, torch.float32, device)
    pipeline = diffusers.StableDiffusionPipeline(
        unet=_made(diffusers.UNet2DConditionModel.from_config, shapes["unet"], dtype, device),
        vae=_made(diffusers.AutoencoderKL.from_config, shapes["vae"], dtype, device),
        # Its thresholds are all 1, which no cosine exceeds: it flags nothing.
        safety_checker=_made(StableDiffusionSafetyChecker, both, dtype, device),
        text_encoder=loading.in_precision(encoder.text_model, dtype),
        scheduler=diffusers.PNDMScheduler.from_config(shapes["scheduler"]),
        tokenizer=transformers.CLIPTokenizer(
            vocab=tokens, merges=[tuple(pair.split()) for pair in merges], model_max_length=77
        ),
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side),
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


def _made(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    with device:
        return kind(config).to(dtype).eval().requires_grad_(False)
