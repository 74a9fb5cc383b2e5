"""TODO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..models.loading import Model
from ..personalizer import Personalizer
from ..request import Request
from ..settings import home
from .compiled import Compiled
from .cuda_graphs import Recorder
from .graphed_personalizer import products_in_tf32
from .modules import FUNCTIONS, Accelerated, _arrange, _fused, log

__all__ = ["choose", "code", "prepare"]


def code(mode: str) -> Compiled | None:
    """What has been compiled for the GPU that is here, if `mode` is to draw with it; None if there isn't any.

    Takes seconds, and may be done in a thread while a model is being loaded.
    """
    if mode != "compile":
        return None
    torch.cuda.synchronize()  # the code goes to the GPU, which a thread begins without
    compiled = Compiled(_folder())
    if not compiled:
        log.warning("No code has been compiled for this GPU and these versions (script/warm does it): speed graph")
        return None
    return compiled


def choose(model: Model, mode: str, compiled: Compiled | None) -> "Accelerated | None":
    """How to draw with `model` at one of SPEEDS; None is the plain way. Lays out its weights for it.

    compiled: what `code` has for that way.
    """
    if mode == "plain":
        return None
    _arrange(model)
    return Accelerated(model, Recorder(model.device), compiled)


def prepare(model: Model, requests: Sequence[Request]) -> None:
    """Compile what requests like these are drawn with, as far as that has not been done on this machine."""
    compiled = Compiled(_folder())
    _arrange(model)
    for name, part, inputs in tqdm(_examples(model, requests), desc="Compiling", unit=" parts"):
        if compiled.find(name, part, inputs) is None:
            with products_in_tf32():  # as it will run, which the compiler would advise otherwise
                log.info("%s", compiled.make(name, FUNCTIONS[name], part, inputs))


def _folder() -> Path:
    return home() / "weights" / "compiled"


def _examples(model: Model, requests: Sequence[Request]) -> list[tuple[str, Any, tuple[Tensor, ...]]]:
    """The parts worth compiling, by name, and examples of what requests call them with."""
    tokens = torch.zeros(1, model.pipeline.tokenizer.model_max_length, dtype=torch.int64, device=model.device)
    target = torch.randn(1, model.dim, device=model.device)
    encoder = Personalizer(model.encoder).start(tokens)
    parts = {"unet": _fused(model.pipeline.unet), "vae": model.pipeline.vae}
    drawing = [(name, parts[name], inputs) for one in requests for name, inputs in _inputs(model, one).items()]
    return [("encoder", encoder, (tokens, target)), *drawing]


def _inputs(model: Model, request: Request) -> dict[str, tuple[Tensor, ...]]:
    unet, factor = model.pipeline.unet, model.pipeline.vae_scale_factor
    like: dict[str, Any] = {"device": model.device, "dtype": unet.dtype}
    latent = (unet.config.in_channels, request.height // factor, request.width // factor)
    count = request.num_outputs * (2 if request.guidance_scale > 1 else 1)
    words = torch.randn(count, model.pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim, **like)
    timestep = torch.tensor(1.0, device=model.device)
    return {
        "unet": (torch.randn(count, *latent, **like), timestep, words),
        "vae": (torch.randn(1, *latent, **like),),
    }
