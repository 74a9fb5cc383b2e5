"""The parts of a model that run on a GPU, wrapped so that the same call is faster.

Every part (cuda_graphs.py) and the personalization (graphed_personalizer.py) are replayed as CUDA graphs. They compute
the same as diffusers' and transformers' own modules, except for rounding.
"""

import copy
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
from .cuda_graphs import GraphedCallable, Recorder
from .graphed_personalizer import GraphedPersonalizer

__all__ = ["Accelerated", "accelerate"]

AHEAD = 2  # UNet calls that Python may launch before the GPU has run them


def accelerate(model: Model, speed: str) -> "Accelerated | None":
    """The accelerated parts of `model` at a speed of settings.SPEEDS; None for "plain".

    Stores the UNet's weights in the memory order of the GPU's convolutions, which saves converting them each time.
    """
    if speed == "plain":
        return None
    model.pipeline.unet.to(memory_format=torch.channels_last)
    return Accelerated(model, Recorder(model.device))


class Accelerated:
    """The accelerated parts of a model, also for models that share some of them, such as the same with a LoRA."""

    def __init__(self, model: Model, recorder: Recorder) -> None:
        self._model, self._recorder = model, recorder
        parts = dict(model.pipeline.components)
        self._graphed = {name: self._graph(name, parts[name]) for name in ("unet", "vae", "text_encoder")}
        if parts["safety_checker"] is not None:
            # Only the vision tower can be captured: the checker's decision is Python code.
            tower = parts["safety_checker"].vision_model
            graphed = self._graph("vision_model", tower)
            self._graphed["safety_checker"] = copy.deepcopy(parts["safety_checker"], {id(tower): graphed})
        self._personalizer = GraphedPersonalizer(model.encoder, recorder)

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

    def _graph(self, name: str, part: Any) -> Any:
        return GRAPHED[name](part, GraphedCallable(partial(FUNCTIONS[name], part), self._recorder))


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
    "unet": _noise,
    "vae": _decoded,
    "text_encoder": _hidden,
    "vision_model": _pooled,
}
