"""TODO."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from .gradient import Step, personalize

__all__ = ["Personalizer", "PromptTokenEmbedding"]


class Personalizer:
    """A text encoder that is never touched, and a private copy of it that moves.

    The copy is filled from the untouched weights at the *start* of every run, never at the end: a run may
    be abandoned or broken off at any point, inside a `finally` too, and must leave nothing for the next.

    The copy has only those rows of the token embedding, a third of all weights, that the prompt uses: see
    `PromptTokenEmbedding`.

    There is one copy: one run at a time, and none inside torch.inference_mode.
    """

    def __init__(self, encoder: nn.Module) -> None:
        """Keep `encoder` (fp32, as described at `personalize`) and make the copy beside it.

        Its table of tokens is the nn.Embedding at `.text_model.embeddings.token_embedding`.
        """
        self._table, self._rows = encoder.get_submodule("text_model.embeddings.token_embedding"), PromptTokenEmbedding()
        # Told that the rows are the copy of the table, deepcopy makes none, and puts them in its place.
        self._working = copy.deepcopy(encoder, {id(self._table): self._rows}).requires_grad_(False)
        self._working.get_submodule("text_model").requires_grad_(True)
        self._embeddings = self._working.get_submodule("text_model.embeddings")
        pristine, moving = (dict(one.named_parameters()) for one in (encoder, self._working))
        both = [name for name, weight in moving.items() if weight is not self._rows.weight]
        self._pristine: list[Tensor] = [pristine[name] for name in both]
        self._moving: list[Tensor] = [moving[name] for name in both]

    def __call__(self, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
        """Personalise the prompt `input_ids` towards `aesthetic`; arguments and stops as in `personalize`."""
        yield from personalize(self.start(input_ids), input_ids, aesthetic, steps=steps, lr=lr)

    def start(self, input_ids: Tensor) -> nn.Module:
        """The copy as a run with the prompt `input_ids` begins: untouched, with the rows that the prompt reads."""
        self._reset(self._rows, input_ids)
        return self._working

    @torch.no_grad()
    def _reset(self, rows: "PromptTokenEmbedding", input_ids: Tensor) -> None:
        """Fill the copy from the untouched weights, in one call, and have it read the rows of a prompt in `rows`."""
        torch._foreach_copy_(self._moving, self._pristine)
        rows.fill(input_ids, self._table)
        self._embeddings.register_module("token_embedding", rows)


class PromptTokenEmbedding(nn.Module):
    """The rows of a table of tokens, [tokens, hidden], that one prompt reads: in its place, and as trainable.

    Training them alone is exact. Every other row has a gradient of zero, with which Adam's moments stay zero and the
    row where it is; so Adam need not walk through a table of 38 million weights to move a few dozen rows of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))
        self._tokens = torch.empty(0)

    def fill(self, input_ids: Tensor, table: nn.Module) -> None:
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
