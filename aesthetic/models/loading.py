"""From a local snapshot to a model that is ready to draw. Everything that is loaded is loaded here.

A model is the diffusers pipeline (fp16 on a GPU, fp32 on a CPU) and, beside it in fp32, the text encoder
with CLIP's projection, which is what gets personalised, and CLIP's vision tower, which turns pictures into
aesthetics. Snapshots of the Stable Diffusion 1.x family carry neither projection nor vision tower; those are
OpenAI's CLIP's. A snapshot that brings its own (`text_projection.weight` in text_encoder, and image_encoder)
uses them, and has a CLIP space of its own. Stable Diffusion 2.x must: its text encoder is of another CLIP.

A model in a single file, in the original layout, brings UNet, VAE and text encoder; `Snapshot.folder` has the rest.

Only local safetensors files are read.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import Snapshot
from .clip import (
    Vision,
    _load_encoder,
    _load_tower,
    _load_vision,
    _processor,
    _projection,
    _variant,
    project,
    quiet_loading,
    require_width,
)
from .device import require_kernels

__all__ = ["Model", "in_precision", "load", "precision"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A snapshot in memory, perhaps with a LoRA. Nothing in it changes once it is loaded.

    pipeline:  diffusers' StableDiffusionPipeline on its device; diffusers has no types to speak of.
    encoder:   CLIPTextModelWithProjection in fp32, the pristine master of every personalisation.
    scheduler: the snapshot's own scheduler configuration.
    space:     the CLIP space of the projection: a hub name, or for a snapshot's own, "clip-" and a digest.
    vision:    None if the snapshot's CLIP space has no vision tower.
    lora:      the sha256 of the LoRA file that was put in (see graft.py), if any.
    """

    snapshot: Snapshot
    pipeline: Any
    encoder: Any
    scheduler: Mapping[str, Any]
    clip_space: str
    vision: Vision | None
    lora: str | None = None

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        device: torch.device = self.encoder.device
        return device

    @property
    def dim(self) -> int:
        """Dimensions of the CLIP space."""
        return int(self.encoder.text_projection.weight.shape[0])


@quiet_loading()
def load(snapshot: Snapshot, device: torch.device) -> Model:
    """Load a snapshot from the disk: fp16 on a GPU, fp32 on a CPU.

    Raises CheckpointError if its text encoder has no projection, or one that doesn't fit, and if weights are missing;
    SettingError for a GPU on which torch can't compute.
    """
    require_kernels(device)
    projection, clip_space = _projection(snapshot)
    if snapshot.file is not None:
        encoder, pipeline = _load_file(snapshot.file, snapshot.folder, projection, device)
    else:
        encoder = _load_encoder(snapshot.folder / "text_encoder", projection).to(device)
        pipeline = _load_pipeline(snapshot.folder, encoder, device)
    return Model(
        snapshot=snapshot,
        pipeline=pipeline,
        encoder=encoder,
        scheduler=dict(pipeline.scheduler.config),
        clip_space=clip_space,
        vision=_load_vision(snapshot, clip_space, device),
    )


def precision(device: torch.device) -> torch.dtype:
    """What is drawn in: fp16 on a GPU, fp32 on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.float32


def _load_file(file: Path, folder: Path, projection: Tensor, device: torch.device) -> tuple[Any, Any]:
    """Encoder and pipeline of a model in the original layout, with all that is not in the file from `folder`."""
    try:
        pipeline = diffusers.StableDiffusionPipeline.from_single_file(
            str(file),
            config=str(folder),
            dtype=torch.float32,  # which the encoder needs; what is drawn with is halved below
            local_files_only=True,
            safety_checker=_load_tower(StableDiffusionSafetyChecker, folder / "safety_checker"),
            feature_extractor=_processor(folder / "feature_extractor"),
        )
    except (ValueError, RuntimeError, KeyError, IndexError) as error:  # what other shapes and names make of diffusers
        raise CheckpointError(
            f"{file} lacks weights of Stable Diffusion 1.x, or has them in other shapes: {error}"
        ) from error
    _require_weights(pipeline.text_encoder, f"the text encoder's weights in {file}")
    require_width(pipeline.text_encoder.config.hidden_size, projection, file)
    encoder = project(pipeline.text_encoder, projection).to(device)
    dtype = precision(device)
    pipeline.register_modules(text_encoder=in_precision(encoder.text_model, dtype))
    return encoder, pipeline.to(device, dtype)


def in_precision(module: Any, dtype: torch.dtype) -> Any:
    """`module` itself if it is of that precision, else a copy that is."""
    return module if module.dtype == dtype else copy.deepcopy(module).to(dtype)


def _load_pipeline(folder: Path, encoder: Any, device: torch.device) -> Any:
    dtype = precision(device)
    components: dict[str, Any] = {
        "image_encoder": None,  # the vision tower is not the pipeline's business
        "text_encoder": in_precision(encoder.text_model, dtype),  # read once for both
    }
    if not (folder / "safety_checker").is_dir():
        components["safety_checker"] = None
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder,
        dtype=dtype,
        variant=_variant(folder.glob("*/*.safetensors"), dtype),
        use_safetensors=True,
        local_files_only=True,
        requires_safety_checker="safety_checker" not in components,
        **components,
    )
    if pipeline.feature_extractor is not None:
        pipeline.register_modules(feature_extractor=_processor(folder / "feature_extractor"))
    for name in ("unet", "vae"):
        _require_weights(getattr(pipeline, name), f"the weights in {folder / name}")
    return pipeline.to(device)


def _require_weights(part: Any, label: str) -> None:
    """Raise CheckpointError if a part lacks a weight: where a file does, diffusers leaves its place empty."""
    lacking = [weight for weight, values in part.named_parameters() if values.is_meta]
    if lacking:
        raise CheckpointError(f"{label} lack {lacking[0]} and {len(lacking) - 1} others")
