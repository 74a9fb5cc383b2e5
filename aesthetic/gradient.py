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

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Personaliser", "Rows", "Step", "ascend", "similarity"]


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
def ascend(encoder: nn.Module, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
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
    optimiser = torch.optim.Adam(encoder.get_submodule("text_model").parameters(), lr=lr)
    optimiser.zero_grad()  # of a run that was broken off, which may have left gradients behind
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
            optimiser.step()
            optimiser.zero_grad()  # now, since nobody need come back: a third of a gigabyte that the pictures want


class Personaliser:
    """A text encoder that is never touched, and a private copy of it that moves.

    The copy is filled from the untouched weights at the *start* of every run, never at the end: a run may
    be abandoned or broken off at any point, inside a `finally` too, and must leave nothing for the next.

    Of the table of tokens, a third of all weights, the copy has the rows that the prompt reads: see `Rows`.

    There is one copy: one run at a time, and none inside torch.inference_mode.
    """

    def __init__(self, encoder: nn.Module) -> None:
        """Keep `encoder` (fp32, as described at `ascend`) and make the copy beside it.

        Its table of tokens is the nn.Embedding at `.text_model.embeddings.token_embedding`.
        """
        self._table, self._rows = encoder.get_submodule("text_model.embeddings.token_embedding"), Rows()
        # Told that the rows are the copy of the table, deepcopy makes none, and puts them in its place.
        self._working = copy.deepcopy(encoder, {id(self._table): self._rows}).requires_grad_(False)
        self._working.get_submodule("text_model").requires_grad_(True)
        self._embeddings = self._working.get_submodule("text_model.embeddings")
        pristine, moving = (dict(one.named_parameters()) for one in (encoder, self._working))
        both = [name for name, weight in moving.items() if weight is not self._rows.weight]
        self._pristine: list[Tensor] = [pristine[name] for name in both]
        self._moving: list[Tensor] = [moving[name] for name in both]

    def __call__(self, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
        """Personalise the prompt `input_ids` towards `aesthetic`; arguments and stops as in `ascend`."""
        yield from ascend(self.start(input_ids), input_ids, aesthetic, steps=steps, lr=lr)

    def start(self, input_ids: Tensor) -> nn.Module:
        """The copy as a run with the prompt `input_ids` begins: untouched, with the rows that the prompt reads."""
        self._reset(self._rows, input_ids)
        return self._working

    @torch.no_grad()
    def _reset(self, rows: "Rows", input_ids: Tensor) -> None:
        """Fill the copy from the untouched weights, in one call, and have it read the rows of a prompt in `rows`."""
        torch._foreach_copy_(self._moving, self._pristine)
        rows.read(input_ids, self._table)
        self._embeddings.register_module("token_embedding", rows)


class Rows(nn.Module):
    """The rows of a table of tokens, [tokens, hidden], that one prompt reads: in its place, and as trainable.

    Training them alone is exact. Every other row has a gradient of zero, with which Adam's moments stay zero and the
    row where it is; so Adam need not walk through a table of 38 million weights to move a few dozen rows of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))
        self._tokens = torch.empty(0)

    def read(self, input_ids: Tensor, table: nn.Module) -> None:
        """Take the rows of a prompt [batch, tokens] from the table, an nn.Embedding.

        A token that occurs n times has n rows, of which `forward` finds the first: it moves as one, and no length
        depends on what a prompt says. The rows of a prompt of the same shape stay where they are in memory.
        """
        tokens = input_ids.flatten().sort().values
        rows = table(tokens)
        if rows.shape == self.weight.shape:
            self._tokens.copy_(tokens)
            self.weight.data.copy_(rows)
        else:
            self._tokens, self.weight = tokens, nn.Parameter(rows)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[batch, tokens, hidden] of tokens [batch, tokens], all of which have been read."""
        return functional.embedding(torch.searchsorted(self._tokens, input_ids), self.weight)
