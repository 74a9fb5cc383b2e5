"""The loop of gradient.py on a private copy of the text encoder, filled anew for each run.

acceleration/fast_personalizer.py has the same steps, written out for a GPU.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from .gradient import Step, personalize

__all__ = ["Personalizer"]


class Personalizer:
    """A text encoder that is only read, and a private copy of it that is trained.

    Each run *starts* by filling the copy from the original weights: a run may be abandoned or interrupted at any point,
    even inside a `finally`, and must not affect the next.

    The token embedding holds a third of all weights. Of it, the copy has only the rows of the prompt: see
    `PromptTokenEmbedding`.

    There is one copy, so only one run at a time. Not for use inside torch.inference_mode.
    """

    def __init__(self, encoder: nn.Module) -> None:
        """encoder: in fp32, as `personalize` describes it.

        Its token embedding is the nn.Embedding at `.text_model.embeddings.token_embedding`.
        """
        self._table = encoder.get_submodule("text_model.embeddings.token_embedding")
        self._rows = PromptTokenEmbedding()
        # The memo makes deepcopy put the rows in the table's place instead of copying the table.
        self._working = copy.deepcopy(encoder, {id(self._table): self._rows}).requires_grad_(False)
        self._working.get_submodule("text_model").requires_grad_(True)
        copied = {name: weight for name, weight in self._working.named_parameters() if weight is not self._rows.weight}
        self._copies: list[Tensor] = list(copied.values())
        self._originals: list[Tensor] = [encoder.get_parameter(name) for name in copied]

    def __call__(self, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
        """Personalize the prompt `input_ids` towards `aesthetic`; arguments and steps as in `personalize`."""
        self._reset(input_ids)
        yield from personalize(self._working, input_ids, aesthetic, steps=steps, lr=lr)

    @torch.no_grad()
    def _reset(self, input_ids: Tensor) -> None:
        """Fill the copy from the original weights, for a prompt."""
        torch._foreach_copy_(self._copies, self._originals)
        self._rows.fill(input_ids, self._table)


class PromptTokenEmbedding(nn.Module):
    """The rows of a token embedding that one prompt uses, [different tokens, hidden], trained in place of the table.

    This is exact: in a run, every other row has a gradient of 0, so Adam's moments of it stay 0 and it never moves.
    Adam then updates a few dozen rows instead of a table of 38 million weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))
        self._tokens = torch.empty(0)

    def fill(self, input_ids: Tensor, table: nn.Module) -> None:
        """Copy the rows of a prompt [batch, tokens] from the table, an nn.Embedding."""
        self._tokens = torch.unique(input_ids)
        self.weight = nn.Parameter(table(self._tokens))

    def forward(self, input_ids: Tensor) -> Tensor:
        """[batch, tokens, hidden] of tokens [batch, tokens], all of which must be in the filled prompt."""
        return functional.embedding(torch.searchsorted(self._tokens, input_ids), self.weight)
