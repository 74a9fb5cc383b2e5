"""Choose a speed (plain, graph, compile), and compile for the GPU in advance."""

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
from .modules import FUNCTIONS, Accelerated, fuse_projections, log, use_channels_last

__all__ = ["choose", "code", "prepare"]


def code(mode: str) -> Compiled | None:
    """The code compiled for this GPU, if `mode` is "compile"; None, with a warning, if nothing was compiled.

    Takes seconds. May run in a thread while a model is being loaded.
    """
    if mode != "compile":
        return None
    torch.cuda.synchronize()  # loading the code needs a CUDA context, which a new thread lacks
    compiled = Compiled(_folder())
    if not compiled:
        log.warning("No compiled code for this GPU and these versions (script/warm makes it): using speed graph")
        return None
    return compiled


def choose(model: Model, mode: str, compiled: Compiled | None) -> Accelerated | None:
    """The accelerated parts of `model` in a mode of settings.SPEEDS; None for "plain". May change its weights' layout.

    compiled: what `code` returned for that mode.
    """
    if mode == "plain":
        return None
    use_channels_last(model)
    return Accelerated(model, Recorder(model.device), compiled)


def prepare(model: Model, requests: Sequence[Request]) -> None:
    """Compile the parts of `model` for the sizes of `requests`, except those compiled already."""
    compiled = Compiled(_folder())
    use_channels_last(model)
    for name, part, inputs in tqdm(_examples(model, requests), desc="Compiling", unit=" parts"):
        if compiled.find(name, part, inputs) is None:
            with products_in_tf32():  # as at run time; otherwise the compiler warns that TF32 is off
                log.info("%s", compiled.make(name, FUNCTIONS[name], part, inputs))


def _folder() -> Path:
    return home() / "weights" / "compiled"


def _examples(model: Model, requests: Sequence[Request]) -> list[tuple[str, Any, tuple[Tensor, ...]]]:
    """The parts worth compiling: their names, the parts, and example inputs for the requests."""
    tokens = torch.zeros(1, model.pipeline.tokenizer.model_max_length, dtype=torch.int64, device=model.device)
    target = torch.randn(1, model.dim, device=model.device)
    encoder = Personalizer(model.encoder).start(tokens)
    parts = {"unet": fuse_projections(model.pipeline.unet), "vae": model.pipeline.vae}
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
