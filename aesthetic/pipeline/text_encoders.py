"""The CLIP text encoders of any diffusers pipeline: which aesthetic each can follow, and copies to train."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from accelerate.hooks import remove_hook_from_module
from torch import Tensor

from ..embeddings.embedding import Aesthetic, require_fit, unit
from ..embeddings.resolve import load_aesthetic
from ..errors import EmbeddingError
from ..models import clip
from ..models.checkpoint import OPENAI_SPACE

__all__ = ["Source", "Target", "clip_encoders", "exchanged", "projected_copy", "targets"]

Source = Aesthetic | str | Path | Tensor
CLIP = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one text encoder is to follow: a direction [1, dim] of unit norm, and the projection [dim, hidden] there."""

    name: str
    vector: Tensor
    projection: Tensor


def clip_encoders(pipe: Any) -> dict[str, Any]:
    """CLIP's text encoders among the components of a pipeline. Raises ValueError if it has none."""
    parts = {name: getattr(part, "_orig_mod", part) for name, part in pipe.components.items()}  # torch.compile's
    found = {name: part for name, part in parts.items() if isinstance(part, CLIP)}
    if not found:
        raise ValueError(f"{type(pipe).__name__} has no CLIP text encoder to personalize")
    return found


def targets(encoders: Mapping[str, Any], sources: Sequence[Source], projection: Tensor | None) -> dict[str, Target]:
    """The target of each text encoder that has one. A source goes to the first encoder that it fits and that has none.

    projection: for an encoder without one of its own; None is OpenAI's, if downloaded.

    Raises CheckpointError, EmbeddingError and ValueError as `prompt_embeds` describes.
    """
    if not sources:
        raise ValueError("no aesthetic was given: for the pipeline's own encoding, take 0 steps")
    found: dict[str, Target] = {}
    by_need = sorted(encoders, key=lambda name: _projection(encoders[name]) is None)  # OpenAI's is read last
    for source in sources:
        aesthetic = source if isinstance(source, Aesthetic | Tensor) else load_aesthetic(source)
        errors: list[Exception] = []
        for name in by_need:
            try:
                target = _target(encoders[name], aesthetic, projection)
                if name in found:
                    raise ValueError(f"{name} can follow one aesthetic, not both {found[name].name} and {target.name}")
            except (EmbeddingError, ValueError) as error:
                errors.append(error)
            else:
                found[name] = target
                break
        else:
            raise errors[0] if len(errors) == 1 else EmbeddingError("; ".join(map(str, errors)))
    return found


def projected_copy(encoder: Any, projection: Tensor) -> Any:
    """A copy of a text encoder in fp32 with its projection on top, as `gradient.personalize` takes it.

    A LoRA of peft's in it becomes part of the weights, so that these are trained, as the paper's are.
    """
    # Removing accelerate's hooks brings back the weights of an offloaded text encoder, in the copy only.
    copied = remove_hook_from_module(copy.deepcopy(encoder), recurse=True).float().requires_grad_(False)
    projected = copied if _projection(copied) is not None else clip.project(copied, projection)
    projected.text_model.requires_grad_(True)
    for layer in projected.modules():
        if hasattr(layer, "lora_A"):
            layer.merge()
            layer.requires_grad_(False)
            layer.get_base_layer().requires_grad_(True)
    return projected


def exchanged(pipe: Any, encoders: Mapping[str, Any]) -> Any:
    """A shallow copy of a pipeline with other text encoders. All other components are shared."""
    copied = copy.copy(pipe)
    for name, encoder in encoders.items():
        setattr(copied, name, encoder)
    return copied


def _projection(encoder: Any) -> Tensor | None:
    """The encoder's own projection [dim, hidden], if it has one."""
    layer = getattr(encoder, "text_projection", None)
    if layer is None:
        return None
    weight: Tensor = remove_hook_from_module(copy.deepcopy(layer)).weight.detach()
    return weight


def _target(encoder: Any, aesthetic: Aesthetic | Tensor, projection: Tensor | None) -> Target:
    """The target of an encoder. Raises EmbeddingError or ValueError if the aesthetic is not of its CLIP space."""
    own = _projection(encoder)
    weight = own if own is not None else clip.read_projection() if projection is None else projection
    is_openai = own is None and projection is None
    if isinstance(aesthetic, Aesthetic):
        space = OPENAI_SPACE if is_openai else _space(weight, aesthetic)
        require_fit(aesthetic, clip_space=space, dim=len(weight))
    vector, name = (aesthetic, "a vector") if isinstance(aesthetic, Tensor) else (aesthetic.vector, aesthetic.name)
    hidden = encoder.config.hidden_size
    if weight.shape[1] != hidden or vector.shape != (1, len(weight)):
        raise ValueError(
            f"the text encoder is {hidden} wide, the projection is {len(weight)} × {weight.shape[1]} "
            f"and the aesthetic {list(vector.shape)}: they don't belong together"
        )
    for value, kind in ((vector, "aesthetic"), (weight, "projection")):
        if not value.isfinite().all() or not value.any():
            raise ValueError(f"the {kind} must be finite, and not zero")
    return Target(name=name, vector=unit(vector), projection=weight)


def _space(projection: Tensor, aesthetic: Aesthetic) -> str:
    """The CLIP space of a projection in memory: that of the aesthetic, if this is a hub's name, which it lacks."""
    if aesthetic.clip_space is not None and not aesthetic.clip_space.startswith("clip-"):
        return aesthetic.clip_space
    return clip.name_clip_space(projection.detach().float().cpu())
