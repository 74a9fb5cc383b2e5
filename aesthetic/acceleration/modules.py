"""The parts of a model that run on a GPU, wrapped so that the same call is faster.

UNet and decoder are written out for the GPU (unet.py, decoder.py), if their configuration is one that these know. Every
part and the personalization are replayed as CUDA graphs. They compute the same as diffusers' and transformers' own
modules, except for rounding.
"""

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..gradient import Step
from ..models.loading import Model
from ..personalizer import Personalizer
from .cuda_graphs import GraphedCallable, Recorder

__all__ = ["Accelerated", "accelerate", "runs_triton"]

log = logging.getLogger(__name__)
AHEAD = 2  # UNet calls that Python may launch before the GPU has run them
ADDED = ("text_embeds", "time_ids")  # what Stable Diffusion XL's UNet takes beside the words


def accelerate(model: Model, speed: str) -> "Accelerated | None":
    """The accelerated parts of `model` at a speed of settings.SPEEDS; None for "plain".

    Stores weights of convolutions in the GPU's memory order, which saves converting them each time.
    """
    if speed == "plain":
        return None
    for part in (model.pipeline.unet, model.pipeline.vae.decoder):
        part.to(memory_format=torch.channels_last)
    accelerated = Accelerated(model, Recorder(model.device))
    accelerated.compile()
    return accelerated


class Accelerated:
    """The accelerated parts of a model, also for models that share some of them, such as the same with a LoRA."""

    def __init__(self, model: Model, recorder: Recorder) -> None:
        self._model, self._recorder = model, recorder
        parts = model.pipeline.components
        unet, decoder = (_written_out(parts[name]) for name in ("unet", "vae"))
        self._written_out = [one for one in (unet, decoder) if one is not None]
        self._wrapped = {
            "unet": _Unet(parts["unet"], unet, recorder),
            "vae": _Vae(parts["vae"], decoder, recorder),
            "text_encoder": _TextEncoder(parts["text_encoder"], recorder),
        }
        if model.safety_checker is not None:
            # Only the vision tower can be captured: the checker's decision is Python code.
            tower = model.safety_checker.vision_model
            wrapped = {id(tower): _VisionModel(tower, recorder)}
            self._wrapped["safety_checker"] = copy.deepcopy(model.safety_checker, wrapped)
        self._personalizer: Any = None
        if runs_triton(model.device):
            from .fast_personalizer import FastPersonalizer

            self._personalizer = FastPersonalizer(model.encoder, recorder)
        else:
            log.warning(
                "Replaying diffusers' own modules: faster ones need Linux and a GPU of compute capability 8.0 or later"
            )

    def compile(self) -> None:
        """Compile all kernels: 8 seconds, once on a machine, after which Triton has them in its cache."""

        def compiled(run: Callable[[], object]) -> None:
            with torch.cuda.device(self._recorder.device):
                torch.cuda.synchronize()  # cuBLAS needs a CUDA context, which a new thread lacks
                run()

        passes = [] if self._personalizer is None else self._personalizer.once()
        with ThreadPoolExecutor() as pool:
            list(pool.map(compiled, [*passes, *(one.once for one in self._written_out)]))

    def personalizer(self, model: Model) -> Callable[..., Iterator[Step]]:
        """A Personalizer of the model's encoder, or what stands for it."""
        return Personalizer(model.encoder) if self._personalizer is None else self._personalizer.of(model.encoder)

    def wrap(self, model: Model) -> Model:
        """`model` with accelerated parts.

        Of the components a LoRA replaces, only the UNet runs often enough to be worth capturing.
        """
        own, parts = self._model.pipeline.components, dict(model.pipeline.components)
        for name, wrapped in self._wrapped.items():
            if parts[name] is own[name]:
                parts[name] = wrapped
            elif name == "unet":
                parts[name] = _Unet(parts[name], _written_out(parts[name]), self._recorder)
        return model.with_parts(**parts)


class _Wrapped(nn.Module):
    """Stands for a part: attributes and methods are the part's, except those that a subclass defines."""

    def __init__(self, part: nn.Module, function: Callable[..., Tensor], recorder: Recorder) -> None:
        super().__init__()
        self.part, self.function = part, GraphedCallable(function, recorder)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.part, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the part itself, without the graph."""
        return copy.deepcopy(self.part, memo)


class _Unet(_Wrapped):
    """Computes what depends on the prompts alone once for all steps.

    Keeps Python at most AHEAD calls ahead of the GPU. Otherwise Python would launch all steps at once: the progress bar
    would be wrong, and after a canceled prediction the next one would wait for the launched steps.
    """

    def __init__(self, part: Any, written_out: Any, recorder: Recorder) -> None:
        def noise(sample: Tensor, timestep: Tensor, embeds: Tensor, *added: Tensor) -> Any:
            added_cond_kwargs = dict(zip(ADDED, added, strict=True)) if added else None
            options = {"encoder_hidden_states": embeds, "added_cond_kwargs": added_cond_kwargs}
            return part(sample, timestep, **options, return_dict=False)[0]

        super().__init__(part, written_out or noise, recorder)
        self._prepare = written_out.prepare if written_out else lambda *prompts: prompts
        self._prompts: tuple[Tensor, ...] = ()
        self._prepared: tuple[Tensor, ...] = ()
        self._launched: deque[torch.Event] = deque()

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        **others: Any,
    ) -> tuple[Tensor]:
        unknown = {name: value for name, value in others.items() if value is not None and name != "return_dict"}
        assert not unknown, f"not captured: {unknown}"
        prompts = (encoder_hidden_states, *(added_cond_kwargs[name] for name in ADDED if added_cond_kwargs))
        if [*map(id, prompts)] != [*map(id, self._prompts)]:
            self._prompts, self._prepared = prompts, self._prepare(*prompts)
        noise = self.function(sample, timestep.float(), *self._prepared)  # integers in some samplers
        self._launched.append(torch.cuda.current_stream().record_event())
        while len(self._launched) > AHEAD:
            self._launched.popleft().synchronize()
        return (noise,)


class _Vae(_Wrapped):
    def __init__(self, part: Any, written_out: Any, recorder: Recorder) -> None:
        super().__init__(part, written_out or (lambda latents: part.decode(latents, return_dict=False)[0]), recorder)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        assert not return_dict
        return (self.function(latents),)


class _TextEncoder(_Wrapped):
    def __init__(self, part: Any, recorder: Recorder) -> None:
        super().__init__(part, lambda input_ids: part(input_ids).last_hidden_state, recorder)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.function(input_ids))


class _VisionModel(_Wrapped):
    def __init__(self, part: Any, recorder: Recorder) -> None:
        super().__init__(part, lambda pixels: part(pixels)[1], recorder)

    def forward(self, pixels: Tensor) -> tuple[None, Tensor]:
        return None, self.function(pixels)


def runs_triton(device: torch.device) -> bool:
    """Whether our kernels run: torch brings triton on Linux only, and they need a GPU of 2020 or later, as the A100."""
    if find_spec("triton") is None:
        return False
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _written_out(part: Any) -> Any:
    """A UNet, or a VAE's decoder, as it is written out for the GPU; None, which is logged, if it is of another kind."""
    if not runs_triton(part.device):
        return None
    from .decoder import Decoder
    from .unet import Unet

    kind = Decoder if hasattr(part, "decoder") else Unet
    if unknown := kind.unknown(part):
        log.warning(
            "%s is replayed as diffusers' own, since %s is not written out for the GPU", type(part).__name__, unknown
        )
        return None
    return kind(part)
