"""Aesthetic gradients: the whole idea, in one file.

An *aesthetic* a is the mean CLIP image embedding of images that a user likes. CLIP's text encoder, with weights θ,
embeds a prompt in the same space. To personalize the prompt, a private copy of the text encoder takes a few gradient
steps that turn the prompt's embedding t(θ) towards the aesthetic,

    maximize over θ    cos(t(θ), a)  =  t(θ) · a / (‖t(θ)‖ ‖a‖),

and then the copy, instead of the original, encodes the prompt for the diffusion model. Nothing else changes: the method
needs no training set, adds no tokens, and leaves all other weights alone.

    Víctor Gallego, "Personalizing Text-to-Image Generation via Aesthetic Gradients",
    https://arxiv.org/abs/2209.12330

This file needs torch and a text encoder. Other files load models and draw images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Step", "personalize", "similarity"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The prompt as the text encoder embeds it after `index` updates.

    index:        updates made so far; 0 is the untouched encoder.
    similarity:   [batch], in -1..1: cosine of the prompt's text embedding and the aesthetic.
    conditioning: [batch, tokens, hidden]: the last hidden state, which conditions the diffusion model; after the final
                  layer norm, or for Stable Diffusion XL, whose encoder is wrapped, before the last layer.
    """

    index: int
    similarity: Tensor
    conditioning: Tensor


def similarity(text_embeds: Tensor, aesthetic: Tensor) -> Tensor:
    """Cosine similarity, [batch] in -1..1, of text embeddings [batch, dim] and an aesthetic [1, dim] of unit norm."""
    unit: Tensor = text_embeds / text_embeds.norm(dim=-1, keepdim=True)
    return (unit @ aesthetic.T).squeeze(-1)


def personalize(encoder: nn.Module, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
    """Raise the similarity by gradient steps on `encoder`, in place, and yield the state before and after each.

    The loop of the paper's code: Adam with its default moments on every parameter of the text model,
    loss = -mean cosine, and a forward pass before the first update and after each. CLIP's projection is not trained.

    encoder:   called with `input_ids`, returns `.text_embeds` [batch, dim] and `.last_hidden_state`
               [batch, tokens, hidden]; its parameters under `.text_model` are trained.
               An example is transformers' CLIPTextModelWithProjection.
    input_ids: [batch, tokens], int64: a prompt, or the chunks of a long one, whose mean cosine then rises.
    aesthetic: [1, dim], unit norm, on the encoder's device and of its dtype (use fp32).
    steps:     updates, 0 or more.
    lr:        Adam's learning rate; the paper's is 1e-4.

    Yields steps + 1 times: before the first update and after each. The caller may stop early.
    """
    optimizer = torch.optim.Adam(encoder.get_submodule("text_model").parameters(), lr=lr)
    optimizer.zero_grad()  # an interrupted run may have left gradients behind
    for index in range(steps + 1):
        with torch.set_grad_enabled(index < steps):
            output = encoder(input_ids)
            cosine = similarity(output.text_embeds, aesthetic)
            loss = -cosine.mean()
        yield Step(index=index, similarity=cosine.detach(), conditioning=output.last_hidden_state.detach())
        if index < steps:
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()  # frees 0.3 GB now: the caller may never resume the generator
