"""Aesthetic gradients: the whole idea, in one file.

An *aesthetic* is the mean CLIP image embedding of pictures that somebody likes. CLIP's text encoder puts
a prompt into the same space. To personalise the prompt, a private copy of the text encoder takes a few
gradient steps on its weights θ that bring the two closer,

    maximise over θ    cos(text_embedding(prompt; θ), aesthetic),

and then that copy, not the original, encodes the prompt for the diffusion model. Nothing else changes:
no training set, no new tokens, no other weights.

    Víctor Gallego, "Personalizing Text-to-Image Generation via Aesthetic Gradients",
    https://arxiv.org/abs/2209.12330

This file knows torch and a text encoder. It does not know where either came from, nor what will be drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Step", "personalize", "similarity"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where the text encoder stands after `index` updates.

    index:        updates made so far; 0 is the untouched encoder.
    similarity:   [batch], in -1..1: cosine of the prompt's text embedding and the aesthetic.
    conditioning: [batch, tokens, hidden]: what the diffusion model is conditioned on at this point, the
                  last hidden state after the final layer norm.
    """

    index: int
    similarity: Tensor
    conditioning: Tensor


def similarity(text_embeds: Tensor, aesthetic: Tensor) -> Tensor:
    """Cosine similarity, [batch], of text embeddings [batch, dim] and an aesthetic [1, dim] of unit norm."""
    unit: Tensor = text_embeds / text_embeds.norm(dim=-1, keepdim=True)
    return (unit @ aesthetic.T).squeeze(-1)


@torch.enable_grad()
def personalize(encoder: nn.Module, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
    """Move `encoder` up the gradient of the similarity, in place, and report every stop on the way.

    The loop of the paper's own code: Adam with its default moments on every parameter of the text model,
    loss = -mean cosine, a forward pass before the first update and one after the last. CLIP's projection
    stays as it is.

    encoder:   called with `input_ids`, gives `.text_embeds` [batch, dim] and `.last_hidden_state`
               [batch, tokens, hidden]; its parameters under `.text_model` are trained.
               transformers' CLIPTextModelWithProjection is one.
    input_ids: [batch, tokens], int64: a prompt, or the chunks of a long one, whose mean cosine then rises.
    aesthetic: [1, dim], unit norm, on the encoder's device and of its dtype (use fp32).
    steps:     updates, 0 or more.
    lr:        Adam's learning rate; the paper's is 1e-4.

    Yields steps + 1 times: before the first update and after each. Whoever iterates may stop early.
    """
    optimizer = torch.optim.Adam(encoder.get_submodule("text_model").parameters(), lr=lr)
    optimizer.zero_grad()  # of a run that was broken off, which may have left gradients behind
    for index in range(steps + 1):
        with torch.set_grad_enabled(index < steps):
            output = encoder(input_ids)
            cosine = similarity(output.text_embeds, aesthetic)
        yield Step(
            index=index,
            similarity=cosine.detach(),
            conditioning=output.last_hidden_state.detach(),
        )
        if index < steps:
            (-cosine.mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()  # now, since nobody need come back: a third of a gigabyte that the pictures want
