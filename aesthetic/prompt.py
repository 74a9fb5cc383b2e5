"""Words become tokens, and tokens conditioning, with the model's own tokenizer and untouched text encoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .pipeline import Model

__all__ = ["Conditioning", "Tokens", "embed", "encode", "tokenize"]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A prompt as CLIP reads it.

    input_ids: [1, 77], int64, on the model's device, padded.
    lost:      the end of the prompt that did not fit, as words; "" if all of it did.
    """

    input_ids: Tensor
    lost: str


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What steers the denoising: [1, 77, hidden] each, in the precision of the pipeline's text encoder."""

    positive: Tensor
    negative: Tensor


def tokenize(model: Model, prompt: str) -> Tokens:
    """The tokens of `prompt`, cut to what CLIP can read: 75 between the two that mark start and end."""
    tokenizer = model.pipeline.tokenizer
    room = tokenizer.model_max_length
    # Asked for without special tokens, so that the tokenizer doesn't warn of a length that is cut here anyway.
    words = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    padded = tokenizer(prompt, padding="max_length", max_length=room, truncation=True, return_tensors="pt")
    return Tokens(
        input_ids=padded.input_ids.to(model.device),
        lost=tokenizer.decode(words[room - 2 :]).strip(),
    )


@torch.no_grad()
def encode(model: Model, prompt: str, negative_prompt: str) -> Conditioning:
    """The plain pipeline's own conditioning, bit for bit."""
    positive, negative = model.pipeline.encode_prompt(
        prompt,
        model.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=negative_prompt,
    )
    return Conditioning(positive=positive, negative=negative)


@torch.no_grad()
def embed(model: Model, tokens: Tokens) -> Tensor:
    """The text embedding [1, D] of a phrase, fp32, unit norm, by the untouched encoder with CLIP's projection."""
    embeds: Tensor = model.encoder(tokens.input_ids).text_embeds
    unit: Tensor = embeds / embeds.norm(dim=-1, keepdim=True)
    return unit
