"""The parts of a model that run on a GPU, wrapped so that the same call is faster.

    plain    diffusers' and transformers' own modules: the only mode on a CPU
    graph    every part (cuda_graphs.py) and the personalization (graphed_personalizer.py) replayed as CUDA graphs
    compile  the same of compiled code (compiled.py), for the shapes that were compiled; the UNet computes an
             attention's queries, keys and values in one product

A part computes the same in every mode, except for rounding.
"""

import copy
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..models.loading import Model
from ..personalizer import Personalizer
from .compiled import Compiled
from .cuda_graphs import GraphedCallable, Recorder
from .graphed_personalizer import GraphedPersonalizer, forward_pass

__all__ = ["FUNCTIONS", "Accelerated", "fuse_projections", "use_channels_last"]

log = logging.getLogger(__name__)

COMPILED = ("unet", "vae", "encoder")  # the parts with most of the work; encoder is the personalization's
AHEAD = 2  # UNet calls that Python may launch before the GPU has run them


class Accelerated:
    """The accelerated parts of a model, also for models that share some of them, such as the same with a LoRA."""

    def __init__(self, model: Model, recorder: Recorder, compiled: Compiled | None = None) -> None:
        """compiled: code to use where its shapes fit."""
        self.speed = "graph" if compiled is None else "compile"
        self._model, self._recorder = model, recorder
        parts = dict(model.pipeline.components)
        if compiled is not None:
            parts["unet"] = fuse_projections(parts["unet"])
        self._graphed = {name: self._graph(name, parts[name], compiled) for name in ("unet", "vae", "text_encoder")}
        if parts["safety_checker"] is not None:
            # Only the vision tower can be captured: the checker's decision is Python code.
            tower = parts["safety_checker"].vision_model
            graphed = self._graph("vision_model", tower)
            self._graphed["safety_checker"] = copy.deepcopy(parts["safety_checker"], {id(tower): graphed})
        self._personalizer = GraphedPersonalizer(model.encoder, recorder, _best("encoder", compiled))

    def wrap(self, model: Model) -> tuple[Model, Personalizer]:
        """`model` with accelerated parts, and its personalizer.

        Of the components a LoRA replaces, only the UNet runs often enough to be worth capturing.
        """
        own, parts = self._model.pipeline.components, dict(model.pipeline.components)
        for name, graphed in self._graphed.items():
            if parts[name] is own[name]:
                parts[name] = graphed
            elif name == "unet":
                parts[name] = self._graph(name, parts[name])
        fast = replace(model, pipeline=type(model.pipeline)(**parts, requires_safety_checker=False))
        return fast, self._personalizer if model.encoder is self._model.encoder else Personalizer(model.encoder)

    def _graph(self, name: str, part: Any, compiled: Compiled | None = None) -> Any:
        return GRAPHED[name](part, GraphedCallable(partial(_best(name, compiled), part), self._recorder))


def _best(name: str, compiled: Compiled | None) -> Callable[..., Any]:
    """The function of a part and its inputs: compiled code for the shapes that have it, else the plain one."""
    function, missed = FUNCTIONS[name], set[torch.Size]()
    if compiled is None or name not in COMPILED:
        return function

    def best(part: Any, *inputs: Tensor) -> Any:
        known = compiled.find(name, part, inputs)
        if known is None and inputs[0].shape not in missed:
            missed.add(inputs[0].shape)
            log.warning("No compiled code for the %s at %s: using speed graph", name, list(inputs[0].shape))
        return (known or function)(part, *inputs)

    return best


class GraphedModule(nn.Module):
    """Wraps a part: attributes and methods are the part's, except those that a subclass defines."""

    def __init__(self, part: nn.Module, function: GraphedCallable) -> None:
        super().__init__()
        self.part, self.function = part, function

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.part, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the part itself, without the graph."""
        return copy.deepcopy(self.part, memo)


class _Unet(GraphedModule):
    """Keeps Python at most AHEAD calls ahead of the GPU.

    Otherwise Python would launch all steps at once: the progress bar would be wrong, and after a canceled prediction
    the next one would wait for the launched steps.
    """

    def __init__(self, part: nn.Module, function: GraphedCallable) -> None:
        super().__init__(part, function)
        self._launched: deque[torch.Event] = deque()

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any) -> tuple[Tensor]:
        unknown = {name: value for name, value in others.items() if value is not None and name != "return_dict"}
        assert not unknown, f"not captured: {unknown}"
        noise = self.function(sample, timestep.float(), encoder_hidden_states)  # integers in some samplers
        self._launched.append(torch.cuda.current_stream().record_event())
        while len(self._launched) > AHEAD:
            self._launched.popleft().synchronize()
        return (noise,)


class _Vae(GraphedModule):
    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        assert not return_dict
        return (self.function(latents),)


class _TextEncoder(GraphedModule):
    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.function(input_ids))


class _VisionModel(GraphedModule):
    def forward(self, pixels: Tensor) -> tuple[None, Tensor]:
        return None, self.function(pixels)


def _noise(unet: Any, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Any:
    return unet(sample, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]


def _decoded(vae: Any, latents: Tensor) -> Any:
    return vae.decode(latents, return_dict=False)[0]


def _hidden(text_encoder: Any, input_ids: Tensor) -> Any:
    return text_encoder(input_ids).last_hidden_state


def _pooled(vision_model: Any, pixels: Tensor) -> Any:
    return vision_model(pixels)[1]


GRAPHED = {"unet": _Unet, "vae": _Vae, "text_encoder": _TextEncoder, "vision_model": _VisionModel}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "encoder": forward_pass,
    "unet": _noise,
    "vae": _decoded,
    "text_encoder": _hidden,
    "vision_model": _pooled,
}


def use_channels_last(model: Model) -> None:
    """Store the UNet's weights in the memory order of the GPU's convolutions, which saves converting them each time."""
    model.pipeline.unet.to(memory_format=torch.channels_last)


def fuse_projections(unet: Any) -> Any:
    """A copy of a UNet that shares its other weights and computes queries, keys and values in one product."""
    fused = copy.deepcopy(unet, {id(weight): weight for weight in unet.parameters()})
    fused.fuse_qkv_projections()
    return fused.requires_grad_(False)
