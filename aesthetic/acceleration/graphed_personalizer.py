"""The loop of gradient.py as two CUDA graphs: a step, and a forward pass.

A step has a thousand kernels, which run faster than Python launches them; a graph launches them at once. The
computation is the same: forward, backward, Adam. Adam is fused into one kernel, which changes the last bits.

Matrix products stay in fp32, so the conditioning is within 1e-5 of the plain loop's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..gradient import Step, similarity
from ..personalizer import Personalizer, PromptTokenEmbedding
from .cuda_graphs import Graph, LRUCache, Recorder

__all__ = ["GraphedPersonalizer"]

LENGTHS = 4  # graphs kept, by the length of the prompt in chunks
Position = tuple[Tensor, Tensor]  # similarity [batch], -1..1, and conditioning [batch, tokens, hidden]


@dataclass(frozen=True, kw_only=True)
class _Capture:
    """The graphs for prompts of one shape, and the memory of their inputs."""

    input_ids: Tensor
    rows: PromptTokenEmbedding
    aesthetic: Tensor
    rate: Tensor
    moments: list[Tensor]
    step: Graph[Position]
    forward: Graph[Position]


class GraphedPersonalizer(Personalizer):
    """A Personalizer that replays its steps as CUDA graphs."""

    def __init__(self, encoder: nn.Module, recorder: Recorder) -> None:
        """encoder: as for Personalizer.

        recorder: captures the graphs at the first prompt of each shape.
        """
        super().__init__(encoder)
        self._recorder = recorder
        self._captures: LRUCache[_Capture] = LRUCache(LENGTHS)
        self._trained = [weight for weight in self._copies if weight.requires_grad]
        self._moments = {weight: _moments(weight) for weight in self._trained}

    def __call__(self, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
        """Personalize the prompt `input_ids` towards `aesthetic`; arguments and steps as in `personalize`."""
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
        rate = torch.zeros((), device=ids.device)  # 0, so that the runs before the capture change no weight
        optimizer = torch.optim.Adam([rows.weight, *self._trained], lr=rate, fused=True, capturable=True)
        optimizer.state.update({rows.weight: _moments(rows.weight), **self._moments})

        @torch.enable_grad()
        def run(*, training: bool) -> Position:
            output = self._working(ids)
            cosine = similarity(output.text_embeds, target)
            if training:
                (-cosine.mean()).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()  # frees the memory for the next capture
            return cosine.detach(), output.last_hidden_state.detach()

        return _Capture(
            input_ids=ids,
            rows=rows,
            aesthetic=target,
            rate=rate,
            moments=[moment for state in optimizer.state.values() for moment in state.values()],
            step=self._recorder.record(partial(run, training=True)),
            forward=self._recorder.record(partial(run, training=False)),
        )


def _moments(weight: Tensor) -> dict[str, Any]:
    """Adam's state for a weight."""
    return {
        "step": torch.zeros((), device=weight.device),
        "exp_avg": torch.zeros_like(weight),
        "exp_avg_sq": torch.zeros_like(weight),
    }
