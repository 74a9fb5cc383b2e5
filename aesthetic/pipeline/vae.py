"""Run the VAE in its own precision, and again in fp32 where fp16 overflows."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["run_vae"]


@torch.no_grad()
def run_vae(vae: Any, run: Callable[[Any, Tensor], Tensor], inputs: Tensor) -> Tensor:
    """`run(vae, inputs)`; if the result is not finite, that of a copy of the VAE in fp32, finite or not."""
    result = run(vae, inputs.to(vae.dtype))
    if result.isfinite().all():
        return result
    return run(copy.deepcopy(vae).float(), inputs.float())  # a copy, since the prediction may be cancelled here
