"""Personalised conditioning for a diffusers pipeline of one's own: of whichever kind.

    pipe(**prompt_embeds(pipe, "a castle", "fantasy", steps=5), num_inference_steps=20)

The pipeline is left as it is: what comes back are the tensors that it takes in place of words.
"""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn

from .. import gradient
from ..embeddings.embedding import Aesthetic, require_fit, unit
from ..embeddings.resolve import load_aesthetic
from ..errors import DrawingError
from ..models import clip
from ..models.checkpoint import openai_clip_space
from ..models.manifest import read_manifest
from ..settings import home
from . import prompt as words

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
    """What to call `pipe` with, in place of prompt and negative_prompt, to draw `prompt` towards `aesthetic`.

    pipe:       any pipeline of diffusers with a CLIP text encoder and its tokenizer, as all of the Stable Diffusion
                1.x family have.
    aesthetic:  an Aesthetic, a name or a path as in `load_aesthetic`, or a vector [1, dim] of any length.
    steps, lr:  as in `gradient.personalize`; 0 steps give what the pipeline makes of the words itself, and so does an
                empty prompt.
    projection: CLIP's text projection [dim, hidden]; None takes that of OpenAI's CLIP ViT-L/14, which
                download-weights fetches.
    long_prompt: read all of both prompts, in chunks, and weights in them as (red:1.3), as `prompt.read` does; else they
                are cut to one chunk.

    Returns prompt_embeds and negative_prompt_embeds, [1, tokens, hidden] each, on the pipeline's device and in its
    precision. The negative prompt is the business of the untouched encoder.

    Not for use inside torch.inference_mode. Raises CheckpointError if there is no projection; EmbeddingError if the
    aesthetic is of another CLIP space, which a given projection tells only by its dimensions and its digest;
    ValueError if the projection does not fit text encoder and vector, or if steps or lr are negative; RequestError if
    a weight can't be read; DrawingError if the personalization diverges; and what `load_aesthetic` raises.
    """
    if steps < 0 or not lr >= 0:
        raise ValueError(f"steps and lr must be 0 or more, not {steps} and {lr}")
    device = pipe._execution_device  # where an offloaded text encoder, too, does its work
    tokens, negative, empty = (
        # Textual inversions of several vectors become as many words.
        words.read(pipe.tokenizer, pipe.maybe_convert_prompt(text, pipe.tokenizer), device, long=long_prompt)
        for text in (prompt, negative_prompt, "")
    )
    plain = words.encode(pipe.text_encoder, tokens, negative, empty)
    positive = plain.positive
    if steps > 0 and not torch.equal(tokens.input_ids, empty.input_ids):
        weight = clip.read_projection() if projection is None else projection
        vector = aesthetic if isinstance(aesthetic, Tensor) else _fitting(aesthetic, weight, projection is None)
        encoder = _Encoder(pipe.text_encoder, weight, vector).to(device)
        *_, last = gradient.personalize(encoder, tokens.input_ids, unit(vector).to(device), steps=steps, lr=lr)
        positive = plain.joined(last.conditioning, tokens).to(positive.dtype)
        if not positive.isfinite().all():
            raise DrawingError(f"the personalization diverged: lower lr ({lr}) or steps ({steps})")
    return {"prompt_embeds": positive, "negative_prompt_embeds": plain.negative}


def _fitting(aesthetic: Aesthetic | str | Path, projection: Tensor, is_openai: bool) -> Tensor:
    """The vector [1, dim] of an aesthetic of the projection's CLIP space. Raises EmbeddingError."""
    found = aesthetic if isinstance(aesthetic, Aesthetic) else load_aesthetic(aesthetic)
    if is_openai:
        clip_space = openai_clip_space(read_manifest(home() / "weights"))
    else:
        clip_space = clip.name_clip_space(projection.detach().float().cpu())
        if found.clip_space is None or not found.clip_space.startswith("clip-"):
            clip_space = found.clip_space or clip_space  # a hub's name, which a projection does not tell
    require_fit(found, clip_space=clip_space, dim=len(projection))
    return found.vector


class _Encoder(nn.Module):
    """A copy of a text encoder, in fp32, with CLIP's projection on top: what `gradient.personalize` moves."""

    def __init__(self, text_encoder: Any, projection: Tensor, aesthetic: Tensor) -> None:
        super().__init__()
        dim, hidden = projection.shape
        if hidden != text_encoder.config.hidden_size or aesthetic.shape != (1, dim):
            raise ValueError(
                f"the text encoder is {text_encoder.config.hidden_size} wide, the projection is {dim} × {hidden} "
                f"and the aesthetic {list(aesthetic.shape)}: they don't belong together"
            )
        # Of an offloaded text encoder the weights come back once accelerate's hooks are gone: from the copy only.
        self.text_model = (
            remove_hook_from_module(copy.deepcopy(text_encoder), recurse=True).float().requires_grad_(True)
        )
        self.register_buffer("projection", projection.float())

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        output = self.text_model(input_ids)
        text_embeds = nn.functional.linear(output.pooler_output, self.get_buffer("projection"))
        return SimpleNamespace(text_embeds=text_embeds, last_hidden_state=output.last_hidden_state)
