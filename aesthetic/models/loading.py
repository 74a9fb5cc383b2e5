"""Load a local snapshot as a model that is ready to draw. Only safetensors files are read.

Snapshots of the Stable Diffusion 1.x family have neither CLIP projection nor vision tower and use those of OpenAI's
CLIP. A snapshot with its own (`text_projection.weight` in text_encoder, and image_encoder) has its own CLIP space.
Stable Diffusion 2.x needs them, since its text encoder is from another CLIP. Of Stable Diffusion XL's two text
encoders, the first is OpenAI's, and is the one that is personalized.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor

from ..errors import CheckpointError, printable
from .checkpoint import Snapshot
from .clip import (
    Vision,
    find_projection,
    find_vision,
    load_processor,
    load_tower,
    project,
    quiet_loading,
    variant_for,
)
from .device import require_kernels
from .penultimate import PenultimateTextModel, PenultimateTextModelWithProjection
from .single_file import is_xl

__all__ = ["XL", "Model", "in_precision", "load", "precision"]

XL = Path(__file__).parent / "xl"  # configuration of Stable Diffusion XL, for its single files


@dataclass(frozen=True, kw_only=True)
class Model:
    """A snapshot in memory, perhaps with a LoRA. Nothing in it changes after loading.

    pipeline:   diffusers' StableDiffusionPipeline or StableDiffusionXLPipeline, fp16 on a GPU, fp32 on a CPU; Any,
                since diffusers is hardly typed. XL's text encoders give the last hidden state but one as the last, and
                its VAE is in fp32 if it overflows in fp16.
    encoder:    CLIPTextModelWithProjection in fp32, the weights that every personalization starts from.
    scheduler:  the snapshot's own scheduler configuration.
    clip_space: of the projection: a name on the hub, or "clip-" and a digest for the snapshot's own.
    vision:     None if the CLIP space has no vision tower.
    lora:       the sha256 of its LoRA file, if any (see lora.py).
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
        """The device of all parts."""
        device: torch.device = self.encoder.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision to draw in. For the UNet's, diffusers would walk all of its modules, which takes 3 ms."""
        dtype: torch.dtype = self.pipeline.text_encoder.dtype
        return dtype

    @property
    def dim(self) -> int:
        """Dimensions of the CLIP space."""
        return int(self.encoder.text_projection.weight.shape[0])

    @property
    def is_xl(self) -> bool:
        """Whether this is Stable Diffusion XL."""
        return isinstance(self.pipeline, diffusers.StableDiffusionXLPipeline)

    @property
    def safety_checker(self) -> Any:
        """The safety checker; None for a model without."""
        return getattr(self.pipeline, "safety_checker", None)

    def with_parts(self, **parts: Any) -> Self:
        """This model with other components in its pipeline; the first one's pipeline stays as it is."""
        return replace(self, pipeline=self.pipeline_of(type(self.pipeline), **parts))

    def pipeline_of(self, kind: Any, **parts: Any) -> Any:
        """Another pipeline of the model's family, with the same components but for `parts`."""
        options = {"requires_safety_checker": False}
        if self.is_xl:
            empty = self.pipeline.config.force_zeros_for_empty_prompt
            options = {"force_zeros_for_empty_prompt": empty, "add_watermarker": False}
        return kind(**{**self.pipeline.components, **parts}, **options)


@quiet_loading()
def load(snapshot: Snapshot, device: torch.device) -> Model:
    """Load a snapshot from the disk.

    Raises CheckpointError for missing weights and for a missing CLIP projection, or one that doesn't fit; SettingError
    for a GPU on which torch can't compute.
    """
    require_kernels(device)
    projection, clip_space = find_projection(snapshot)
    if snapshot.file is not None:
        encoder, pipeline = _load_file(snapshot.file, snapshot.folder, projection, device)
    else:
        encoder, pipeline = _load_folder(snapshot.folder, projection, device)
    source = snapshot.file or snapshot.folder
    for name in ("unet", "vae"):
        _require_weights(getattr(pipeline, name), f"the {name}'s weights in {source}")
    if pipeline.vae.config.latents_mean is not None:
        raise CheckpointError(f"the latents of {source} have a mean (latents_mean of its VAE): not supported")
    if isinstance(pipeline, diffusers.StableDiffusionXLPipeline) and pipeline.vae.config.force_upcast:
        pipeline.vae.float()
    pipeline.to(device)
    return Model(
        snapshot=snapshot,
        pipeline=pipeline,
        encoder=encoder,
        scheduler=dict(pipeline.scheduler.config),
        clip_space=clip_space,
        vision=find_vision(snapshot, clip_space, device),
    )


def precision(device: torch.device) -> torch.dtype:
    """The dtype to draw in: fp16 on a GPU, fp32 on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.float32


def _load_file(file: Path, folder: Path, projection: Tensor, device: torch.device) -> tuple[Any, Any]:
    """Encoder and pipeline of a model in the original layout, with the parts that the file lacks from `folder`."""
    xl = is_xl(file)
    kind = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    try:
        pipeline = kind.from_single_file(
            str(file),
            config=str(XL if xl else folder),
            dtype=torch.float32,  # for the encoder; the pipeline is converted below
            local_files_only=True,
            **(_tokenizers if xl else _safety_checker)(folder),
        )
    except (ValueError, RuntimeError, KeyError, IndexError) as error:  # diffusers' for unexpected shapes and names
        raise CheckpointError(
            f"{file} lacks weights of Stable Diffusion {'XL' if xl else '1.x'}, or has them in other shapes: "
            f"{printable(str(error))}"
        ) from error
    _require_weights(pipeline.text_encoder, f"the text encoder's weights in {file}")
    if xl:
        _require_weights(pipeline.text_encoder_2, f"the second text encoder's weights in {file}")
        pipeline.text_encoder.__class__ = PenultimateTextModel
        pipeline.text_encoder_2.__class__ = PenultimateTextModelWithProjection
    encoder = project(pipeline.text_encoder, projection, file).to(device)
    dtype = precision(device)
    pipeline.register_modules(text_encoder=in_precision(encoder.text_model, dtype))
    return encoder, pipeline.to(dtype)


def _tokenizers(folder: Path) -> dict[str, Any]:
    """Those of Stable Diffusion XL, which differ in their padding."""
    load, path = transformers.CLIPTokenizer.from_pretrained, folder / "tokenizer"
    second = load(path, pad_token="!")  # noqa: S106 (no password)
    return {"tokenizer": load(path), "tokenizer_2": second, "add_watermarker": False}


def _safety_checker(folder: Path) -> dict[str, Any]:
    return {
        "safety_checker": load_tower(StableDiffusionSafetyChecker, folder / "safety_checker"),
        "feature_extractor": load_processor(folder / "feature_extractor"),
    }


def in_precision(module: Any, dtype: torch.dtype) -> Any:
    """`module` itself if it has this dtype, else a converted copy."""
    return module if module.dtype == dtype else copy.deepcopy(module).to(dtype)


def _load_folder(folder: Path, projection: Tensor, device: torch.device) -> tuple[Any, Any]:
    """Encoder and pipeline of a model in diffusers' layout."""
    xl = "XL" in diffusers.DiffusionPipeline.load_config(folder)["_class_name"]
    text_encoder = load_tower(PenultimateTextModel if xl else transformers.CLIPTextModel, folder / "text_encoder")
    encoder = project(text_encoder, projection, folder / "text_encoder").to(device)
    dtype = precision(device)
    components: dict[str, Any] = {
        "image_encoder": None,  # the pipeline doesn't use the vision tower
        "text_encoder": in_precision(encoder.text_model, dtype),
    }
    if xl:
        second = load_tower(PenultimateTextModelWithProjection, folder / "text_encoder_2").to(dtype)
        components |= {"text_encoder_2": second, "add_watermarker": False}
    else:
        has_checker = (folder / "safety_checker").is_dir()
        components |= {"requires_safety_checker": has_checker} | ({} if has_checker else {"safety_checker": None})
    pipeline = (diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline).from_pretrained(
        folder,
        dtype=dtype,
        variant=variant_for(folder.glob("*/*.safetensors"), dtype),
        use_safetensors=True,
        local_files_only=True,
        **components,
    )
    if pipeline.feature_extractor is not None:
        pipeline.register_modules(feature_extractor=load_processor(folder / "feature_extractor"))
    return encoder, pipeline


def _require_weights(part: Any, label: str) -> None:
    """Raise CheckpointError if a part lacks a weight: diffusers leaves those that a file lacks on the meta device."""
    lacking = [weight for weight, values in part.named_parameters() if values.is_meta]
    if lacking:
        raise CheckpointError(f"{label} lack {lacking[0]} and {len(lacking) - 1} others")
