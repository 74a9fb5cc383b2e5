"""A tiny snapshot in the layout of Stable Diffusion 2.x, with random weights: what is other there than in 1.x.

The text encoder is OpenCLIP ViT-H/14's without its last layer, and without a projection as published; attention has as
many heads as a list says; what it predicts may be velocity; the tokenizer fills up with "!"; and there is no safety
checker.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file

from aesthetic.benchmark import random_model
from tests import snapshot
from tests.snapshot import CONFIGS, MODEL, TINY, write_json

HIDDEN, DIM = 48, 40
TEXT: dict[str, Any] = {  # beside what 1.x has; sizes are toys
    "_name_or_path": "hf-models/stable-diffusion-v2-768x768/text_encoder",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,  # 23
    "projection_dim": 512,  # which says nothing: there is none
}
UNET: dict[str, Any] = {
    "attention_head_dim": [1, 2, 4, 4],  # 5, 10, 20, 20: heads, whatever it is called
    "cross_attention_dim": HIDDEN,
    "dual_cross_attention": False,
    "upcast_attention": True,  # of 2.1
    "use_linear_projection": True,
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "epsilon": {},  # the base models', PNDM as in 1.x
    "v_prediction": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}


def write(home: Path, folder: Path, *, prediction: str = "v_prediction", projection: bool = True) -> Path:
    """Write a snapshot to `folder`; tokenizer and VAE are those of the one in `home`.

    projection: whether it brings a projection and a vision tower of its own, as somebody may have put them there.
    """
    first = home / "weights" / MODEL
    for name in ("vae", "tokenizer", "feature_extractor"):
        shutil.copytree(first / name, folder / name)
    index = CONFIGS["model_index.json"] | {"safety_checker": [None, None], "requires_safety_checker": False}
    write_json(folder / "model_index.json", index)
    scheduler = CONFIGS["scheduler/scheduler_config.json"] | {"prediction_type": "epsilon"} | SCHEDULERS[prediction]
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    special = CONFIGS["tokenizer/special_tokens_map.json"] | {"pad_token": "!"}
    write_json(folder / "tokenizer" / "special_tokens_map.json", special)
    write_json(folder / "tokenizer" / "tokenizer_config.json", _without_pad())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        unet = CONFIGS["unet/config.json"] | TINY["unet/config.json"] | UNET
        snapshot.save_weights(diffusers.UNet2DConditionModel.from_config(unet), folder / "unet")
        text = CONFIGS["text_encoder/config.json"] | TINY["text_encoder/config.json"] | TEXT
        encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text))
        snapshot.save_weights(encoder, folder / "text_encoder", rename=lambda key: f"text_model.{key}")
        write_json(folder / "text_encoder" / "config.json", text)
        if projection:
            [file] = (folder / "text_encoder").glob("*.safetensors")
            own = {"text_projection.weight": torch.randn(DIM, HIDDEN)}
            save_file(load_file(file) | own, file, metadata={"format": "pt"})
            vision = (
                random_model.SD15["vision"]
                | random_model.TINY["vision"]
                | {"projection_dim": DIM, "hidden_act": "gelu"}
            )
            tower = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
            snapshot.save_weights(tower, folder / "image_encoder")
    return folder


def _without_pad() -> dict[str, Any]:
    config = json.loads(json.dumps(CONFIGS["tokenizer/tokenizer_config.json"]))
    del config["pad_token"]  # the other file says it
    found: dict[str, Any] = config
    return found
