"""The loop of gradient.py on a private copy of the text encoder, filled anew for each run.

Speed is acceleration/graphed_personalizer.py's part: it records these steps as CUDA graphs.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from .gradient import Step, personalize

__all__ = ["Personalizer", "PromptTokenEmbedding"]


class Personalizer:
    """A text encoder that is only read, and a private copy of it that is trained.

    The copy is filled from the original weights at the *start* of each run: a run may be abandoned or interrupted
    at any point, even inside a `finally`, and must not affect the next.

    Of the token embedding, a third of all weights, the copy has only the rows that the prompt uses: see
    `PromptTokenEmbedding`.

    There is one copy, so only one run at a time. Not for use inside torch.inference_mode.
    """

    def __init__(self, encoder: nn.Module) -> None:
        """Keep `encoder` (fp32, as `personalize` describes it) and make the copy.

        Its token embedding is the nn.Embedding at `.text_model.embeddings.token_embedding`.
        """
        self._table, self._rows = encoder.get_submodule("text_model.embeddings.token_embedding"), PromptTokenEmbedding()
        # The memo makes deepcopy put the rows in the table's place instead of copying the table.
        self._working = copy.deepcopy(encoder, {id(self._table): self._rows}).requires_grad_(False)
        self._working.get_submodule("text_model").requires_grad_(True)
        self._embeddings = self._working.get_submodule("text_model.embeddings")
        pristine, moving = (dict(one.named_parameters()) for one in (encoder, self._working))
        both = [name for name, weight in moving.items() if weight is not self._rows.weight]
        self._pristine: list[Tensor] = [pristine[name] for name in both]
        self._moving: list[Tensor] = [moving[name] for name in both]

    def __call__(self, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
        """Personalize the prompt `input_ids` towards `aesthetic`; arguments and steps as in `personalize`."""
        yield from personalize(self.start(input_ids), input_ids, aesthetic, steps=steps, lr=lr)

    def start(self, input_ids: Tensor) -> nn.Module:
        """The copy at the start of a run: with the original weights, and the rows of the prompt `input_ids`."""
        self._reset(self._rows, input_ids)
        return self._working

    @torch.no_grad()
    def _reset(self, rows: "PromptTokenEmbedding", input_ids: Tensor) -> None:
        """Fill the copy from the original weights, in one call, and make `rows` its token embedding for a prompt."""
        torch._foreach_copy_(self._moving, self._pristine)
        rows.fill(input_ids, self._table)
        self._embeddings.register_module("token_embedding", rows)


class PromptTokenEmbedding(nn.Module):
    """The rows of a token embedding that one prompt uses, [tokens, hidden], as a trainable replacement for it.

    Training only these is exact: every other row has a gradient of zero, with which Adam's moments and the row stay
    unchanged. So Adam updates a few dozen rows instead of a table of 38 million weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))
        self._tokens = torch.empty(0)

    def fill(self, input_ids: Tensor, table: nn.Module) -> None:
        """Copy the rows of a prompt [batch, tokens] from the table, an nn.Embedding.

        A token that occurs n times has n rows, of which `forward` uses only the first: shapes do not depend on the
        prompt's words. Filling with a prompt of the same shape reuses the memory.
        """
        tokens = input_ids.flatten().sort().values
        rows = table(tokens)
        if rows.shape == self.weight.shape:
            self._tokens.copy_(tokens)
            self.weight.data.copy_(rows)
        else:
            self._tokens, self.weight = tokens, nn.Parameter(rows)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[batch, tokens, hidden] of tokens [batch, tokens], all of which must be in the filled prompt."""
        return functional.embedding(torch.searchsorted(self._tokens, input_ids), self.weight)
