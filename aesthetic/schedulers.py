"""The samplers on the form, by their names, as diffusers' schedulers.

Each is made anew for every prediction from the model's own scheduler configuration: a scheduler has state, and
one made from another's configuration would inherit what that one had overridden.
"""

import functools
from collections.abc import Mapping
from typing import Any

import diffusers
from torch import Tensor

__all__ = ["TABLE", "build", "on_cpu"]

# name on the form -> (class in diffusers, what it sets beyond the model's configuration)
TABLE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),  # as in PLMS, one UNet call a step
    "DDIM": ("DDIMScheduler", {}),
    "DPMSolverMultistep": ("DPMSolverMultistepScheduler", {}),
    "K_EULER": ("EulerDiscreteScheduler", {}),
    "K_EULER_ANCESTRAL": ("EulerAncestralDiscreteScheduler", {}),
    "KLMS": ("LMSDiscreteScheduler", {}),
    "HeunDiscrete": ("HeunDiscreteScheduler", {}),
    "KarrasDPM": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


def build(name: str, config: Mapping[str, Any], *, eta: float = 0.0) -> Any:
    """A fresh scheduler.

    name:   of TABLE.
    config: the snapshot's scheduler configuration; it stays as it is.
    eta:    DDIM's noise, 0..1, as it will be given to the pipeline.
    """
    class_name, overrides = TABLE[name]
    scheduler = getattr(diffusers, class_name).from_config(dict(config), **overrides)
    if name == "K_EULER_ANCESTRAL" or (name == "DDIM" and eta > 0):
        scheduler.step = _in_fp32(scheduler.step)
    return scheduler


def on_cpu(scheduler: Any) -> Any:
    """`scheduler` with its table of timesteps on the CPU, wherever its latents are.

    It is asked there, at each step: every answer from a GPU would come after all the work that the GPU has been given.
    """
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)  # the pipeline looks at the signature
    def here(*arguments: Any, **options: Any) -> None:
        set_timesteps(*arguments, **{**options, "device": "cpu"})

    scheduler.set_timesteps = here
    return scheduler


def _in_fp32(step: Any) -> Any:
    """A scheduler's step that draws its noise in fp32 and rounds afterwards, whatever the model's precision.

    diffusers draws it in the precision of the model's output, and a generator's fp16 numbers are not its fp32
    numbers rounded: a seed would mean other noise on a GPU than on a CPU.
    """

    @functools.wraps(step)  # the pipeline looks at the signature
    def wider(model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> tuple[Tensor]:
        previous: Tensor = step(model_output.float(), timestep, sample.float(), **options)[0]
        return (previous.to(sample.dtype),)

    return wider
