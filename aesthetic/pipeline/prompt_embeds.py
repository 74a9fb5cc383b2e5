"""Personalized conditioning for your own diffusers pipeline.

    pipe(**prompt_embeds(pipe, "a castle", "fantasy", steps=5), num_inference_steps=20)

The pipeline is not changed: the result is the tensors that it takes in place of prompts.
"""

import copy
from pathlib import Path
from typing import Any

from accelerate.hooks import remove_hook_from_module
from torch import Tensor

from .. import gradient
from ..embeddings.embedding import Aesthetic, require_fit, unit
from ..embeddings.resolve import load_aesthetic
from ..models import clip
from ..models.checkpoint import OPENAI_SPACE
from .prompt import encode_prompts

__all__ = ["prompt_embeds"]


def prompt_embeds(
    pipe: Any,
    prompt: str,
    aesthetic: Aesthetic | str | Path | Tensor,
    *,
    negative_prompt: str = "",
    steps: int = 10,
    lr: float = 1e-4,
    projection: Tensor | None = None,
    long_prompt: bool = False,
) -> dict[str, Tensor]:
    """The arguments that replace prompt and negative_prompt in a call of `pipe`, personalized towards `aesthetic`.

    pipe:       any diffusers pipeline with one CLIP text encoder, such as all of the Stable Diffusion 1.x family.
    aesthetic:  an Aesthetic, a name or a path as in `load_aesthetic`, or a vector [1, dim] of any length.
    steps, lr:  as in `gradient.personalize`; 0 steps, or an empty prompt, give the pipeline's own encoding.
    projection: CLIP's text projection [dim, hidden]; None takes that of OpenAI's CLIP ViT-L/14, if downloaded.
    long_prompt: read both prompts in chunks, with weights as in (red:1.3), as `tokenize_prompt` does, instead of one
                chunk of each.

    Returns prompt_embeds and negative_prompt_embeds, [1, tokens, hidden] each, on the pipeline's device and in its
    precision. The negative prompt is encoded by the untouched encoder.

    Not for use inside torch.inference_mode. Raises CheckpointError if no projection is given or downloaded;
    EmbeddingError if the aesthetic is of another CLIP space (a given projection is known by its dimensions and digest);
    ValueError if the projection does not fit text encoder and vector, if that has no direction, or if steps or lr are
    negative; RequestError if a weight can't be read; DrawingError if the personalization diverges; and what
    `load_aesthetic` raises.
    """
    if steps < 0 or not lr >= 0:
        raise ValueError(f"steps and lr must be 0 or more, not {steps} and {lr}")
    device = pipe._execution_device  # also if the text encoder is offloaded
    # A textual inversion of several vectors becomes as many tokens.
    prompt, negative_prompt = pipe.maybe_convert_prompt([prompt, negative_prompt], pipe.tokenizer)
    plain = encode_prompts(pipe.tokenizer, pipe.text_encoder, prompt, negative_prompt, device, long=long_prompt)
    positive = plain.positive
    if steps > 0 and not plain.is_empty:
        weight = clip.read_projection() if projection is None else projection
        vector = aesthetic if isinstance(aesthetic, Tensor) else _fitting(aesthetic, weight, projection is None)
        encoder = _projected_copy(pipe.text_encoder, weight, vector).to(device)
        target = unit(vector).to(device)
        *_, last = gradient.personalize(encoder, plain.tokens.input_ids, target, steps=steps, lr=lr)
        positive = plain.personalized(last, f"lr ({lr}) or steps ({steps})").to(positive.dtype)
    return {"prompt_embeds": positive, "negative_prompt_embeds": plain.negative}


def _fitting(aesthetic: Aesthetic | str | Path, projection: Tensor, is_openai: bool) -> Tensor:
    """The vector [1, dim] of an aesthetic of the projection's CLIP space. Raises EmbeddingError."""
    found = aesthetic if isinstance(aesthetic, Aesthetic) else load_aesthetic(aesthetic)
    if is_openai:
        clip_space = OPENAI_SPACE
    else:
        clip_space = clip.name_clip_space(projection.detach().float().cpu())
        if found.clip_space is None or not found.clip_space.startswith("clip-"):
            clip_space = found.clip_space or clip_space  # a hub's name, which a projection does not have
    require_fit(found, clip_space=clip_space, dim=len(projection))
    return found.vector


def _projected_copy(text_encoder: Any, projection: Tensor, aesthetic: Tensor) -> Any:
    """A copy of a text encoder in fp32 with CLIP's projection on top, as `gradient.personalize` takes it."""
    dim, hidden = projection.shape
    if hidden != text_encoder.config.hidden_size or aesthetic.shape != (1, dim):
        raise ValueError(
            f"the text encoder is {text_encoder.config.hidden_size} wide, the projection is {dim} × {hidden} "
            f"and the aesthetic {list(aesthetic.shape)}: they don't belong together"
        )
    if not aesthetic.isfinite().all() or not aesthetic.any():
        raise ValueError("the aesthetic must be finite, and not zero")
    # Removing accelerate's hooks brings back the weights of an offloaded text encoder, in the copy only.
    copied = remove_hook_from_module(copy.deepcopy(text_encoder), recurse=True).float()
    encoder = clip.project(copied, projection)
    encoder.text_model.requires_grad_(True)
    return encoder
