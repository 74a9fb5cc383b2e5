"""A private copy of a pipeline's text encoder, which may be kept for the next prompt and trained in CUDA graphs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..acceleration.cuda_graphs import Recorder
from ..acceleration.modules import runs_triton
from ..gradient import Step, personalize
from .text_encoders import Target, projected_copy

__all__ = ["TrainedCopy", "is_altered"]


class TrainedCopy:
    """`encoder` is the copy: with the original's weights, after a run the trained ones, and so on after `refill`."""

    def __init__(self, original: Any, target: Target, device: torch.device, *, in_graphs: bool = False) -> None:
        """in_graphs: train it in CUDA graphs where a GPU can: their capture takes longer than one run saves."""
        self._original, self._fast = original, None
        self._projected = projected_copy(original, target.projection).to(device)
        self.encoder = self._projected if isinstance(self._projected, type(original)) else self._projected.text_model
        if in_graphs and device.type == "cuda" and runs_triton(device):
            from ..acceleration.fast_personalizer import FastPersonalizer, supports

            if supports(self._projected):
                self._fast = FastPersonalizer(self._projected, Recorder(device))

    def is_of(self, original: Any) -> bool:
        """Whether this is a copy of that text encoder, on the device where that is now."""
        return original is self._original and original.device == self.encoder.device

    @torch.no_grad()
    def refill(self, target: Target) -> None:
        """Undo a run, for another target."""
        torch._foreach_copy_([*self.encoder.parameters()], [*self._original.parameters()])
        self._projected.text_projection.weight.copy_(target.projection)

    def personalize(self, input_ids: Tensor, aesthetic: Tensor, *, steps: int, lr: float) -> Iterator[Step]:
        """As `gradient.personalize` does; the arguments are its."""
        if self._fast is None or len(input_ids) > 1:  # beyond 10 chunks, it trains a copy of its own
            yield from personalize(self._projected, input_ids, aesthetic, steps=steps, lr=lr)
        else:
            yield from self._fast(input_ids, aesthetic, steps=steps, lr=lr)
            self._fast.write(self._projected.text_model)


def is_altered(encoder: Any) -> bool:
    """Whether a text encoder has hooks of accelerate's or a LoRA of peft's, which its copy does not."""
    return any(hasattr(layer, "_hf_hook") or hasattr(layer, "lora_A") for layer in encoder.modules())
