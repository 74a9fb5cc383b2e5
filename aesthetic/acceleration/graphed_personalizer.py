"""The loop of gradient.py as two CUDA graphs: a step, and a look without one.

A step has a thousand kernels, which a GPU has done before Python has launched them; here it is one launch. What is
computed is the same: forward, backward, Adam. That Adam is one kernel for all weights changes the last bits.

The products of matrices are in TF32, fp32 whose factors are rounded to 10 bits, as fp16 has them: the conditioning
differs from that of the plain loop by some 3e-4 of its length, which is what rounding it to fp16 for the UNet costs
anyway. Without, it is within 1e-5, and ten steps take half as long again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..gradient import Step, similarity
from ..personalizer import Personalizer, PromptTokenEmbedding
from .cuda_graphs import Graph, LRUCache, Recorder

__all__ = ["GraphedPersonalizer", "Position", "forward_pass", "products_in_tf32"]

LENGTHS = 4  # of prompts, in chunks, whose graphs are kept
Position = tuple[Tensor, Tensor]  # similarity [batch], -1..1, and conditioning [batch, tokens, hidden]


def forward_pass(encoder: nn.Module, input_ids: Tensor, aesthetic: Tensor) -> Position:
    """Where an encoder stands; it and the other arguments are those of `personalize`."""
    output = encoder(input_ids)
    return similarity(output.text_embeds, aesthetic), output.last_hidden_state


@dataclass(frozen=True, kw_only=True)
class _Capture:
    """The graphs for prompts of one shape, and where their inputs are put."""

    input_ids: Tensor
    rows: PromptTokenEmbedding
    aesthetic: Tensor
    rate: Tensor
    moments: list[Tensor]
    step: Graph[Position]
    forward: Graph[Position]


class GraphedPersonalizer(Personalizer):
    """A Personalizer that replays its steps on a GPU."""

    def __init__(
        self,
        encoder: nn.Module,
        recorder: Recorder,
        forward: Callable[..., Position] = forward_pass,
        *,
        tf32: bool = True,
    ) -> None:
        """As Personalizer. `recorder` records when a prompt of another shape is personalised for the first time.

        forward: what is recorded, and differentiated: forward_pass, or code compiled of it.
        tf32:    whether products of matrices may be rounded like that.
        """
        super().__init__(encoder)
        self._recorder, self._forward, self._tf32 = recorder, forward, tf32
        self._captures: LRUCache[_Capture] = LRUCache(LENGTHS)
        self._trained = [weight for weight in self._moving if weight.requires_grad]
        self._moments = {weight: _moments(weight) for weight in self._trained}

    def __call__(self, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
        """Personalise the prompt `input_ids` towards `aesthetic`; arguments and stops as in `personalize`."""
        capture = self._captures.get(input_ids.shape, lambda: self._record(input_ids, aesthetic))
        self._begin(capture, input_ids, aesthetic, lr)
        for index in range(steps + 1):
            cosine, hidden = (capture.step if index < steps else capture.forward).replay()
            yield Step(index=index, similarity=cosine.clone(), conditioning=hidden.clone())

    @torch.no_grad()
    def _begin(self, capture: _Capture, input_ids: Tensor, aesthetic: Tensor, lr: float) -> None:
        self._reset(capture.rows, input_ids)
        torch._foreach_zero_(capture.moments)
        capture.input_ids.copy_(input_ids)
        capture.aesthetic.copy_(aesthetic)
        capture.rate.fill_(lr)

    def _record(self, input_ids: Tensor, aesthetic: Tensor) -> _Capture:
        ids, target, rows = input_ids.clone(), aesthetic.clone(), PromptTokenEmbedding()
        self._reset(rows, ids)
        rate = torch.zeros((), device=ids.device)  # at which the runs before the recording go nowhere
        optimizer = torch.optim.Adam([rows.weight, *self._trained], lr=rate, fused=True, capturable=True)
        optimizer.state.update({rows.weight: _moments(rows.weight), **self._moments})

        @torch.enable_grad()
        def run(*, moving: bool) -> Position:
            cosine, hidden = self._forward(self._working, ids, target)
            if moving:
                (-cosine.mean()).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()  # the memory goes to whatever is recorded next
            return cosine.detach(), hidden.detach()

        with products_in_tf32(self._tf32):
            return _Capture(
                input_ids=ids,
                rows=rows,
                aesthetic=target,
                rate=rate,
                moments=[moment for state in optimizer.state.values() for moment in state.values()],
                step=self._recorder.record(partial(run, moving=True)),
                forward=self._recorder.record(partial(run, moving=False)),
            )


def _moments(weight: Tensor) -> dict[str, Any]:
    """What Adam remembers of a weight."""
    return {
        "step": torch.zeros((), device=weight.device),
        "exp_avg": torch.zeros_like(weight),
        "exp_avg_sq": torch.zeros_like(weight),
    }


@contextmanager
def products_in_tf32(allowed: bool = True) -> Iterator[None]:
    """Whether products of matrices of fp32 are rounded like that within."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
