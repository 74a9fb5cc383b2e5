"""The trained parts become a Stable Diffusion 1.x snapshot: weights/demo, in fp16."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from .clip import MEAN, STD
from .settings import DEMO, LIBRARY, UNET, WORK

__all__ = ["export"]

PARTS: dict[str, Any] = {
    "text_encoder": CLIPTextModelWithProjection,
    "image_encoder": CLIPVisionModelWithProjection,
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(folder: Path = DEMO) -> None:
    """Write the snapshot; what else is in `folder` (the model card) stays.

    Raises FileNotFoundError, and changes nothing, if a part has not been trained.
    """
    lacking = [name for name in PARTS if not (WORK / name / "config.json").is_file()]
    if lacking:
        raise FileNotFoundError(f"{WORK} has no {', '.join(lacking)}: train, or copy from {folder}, what is missing")
    for name, kind in PARTS.items():
        part = kind.from_pretrained(WORK / name).to(torch.float16)
        shutil.rmtree(folder / name, ignore_errors=True)
        part.save_pretrained(folder / name)
        _edit(folder / name / "config.json")
    shutil.copytree(WORK / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    _write(folder / "model_index.json", INDEX)
    scheduler = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "skip_prk_steps": True, **UNET.schedule}
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write(folder / "feature_extractor" / "preprocessor_config.json", _feature_extractor())


def _edit(path: Path) -> None:
    """Remove local paths, and set float32, in which plain diffusers then loads the part."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    if "dtype" in config:
        config["dtype"] = "float32"
    _write(path, config)


def _feature_extractor() -> dict[str, Any]:
    size = {"shortest_edge": LIBRARY.small}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": LIBRARY.small, "width": LIBRARY.small},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": size,
    }


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
