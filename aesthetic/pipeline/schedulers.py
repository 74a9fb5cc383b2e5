"""The samplers on the form, by their names, as diffusers' schedulers.

A scheduler has state, so each prediction gets a fresh one. It is made from the model's own scheduler configuration: a
scheduler made from another one's configuration would inherit what that one had overridden.
"""

import functools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import diffusers
import torch
from torch import Tensor

__all__ = ["TABLE", "build", "on_cpu", "skip_to_last"]

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
LMS_ORDER = 4  # diffusers' default


def build(name: str, config: Mapping[str, Any], *, eta: float = 0.0) -> Any:
    """A fresh scheduler.

    name:   of TABLE.
    config: the snapshot's scheduler configuration; it stays as it is.
    eta:    DDIM's noise, 0..1, as it will be given to the pipeline.
    """
    class_name, overrides = TABLE[name]
    goes_by_stride = name in ("PNDM", "DDIM")
    if not goes_by_stride and config.get("timestep_spacing") == "leading":
        # That spacing begins late where the steps don't divide 1000: DPM-Solver with 500 at t = 501.
        overrides = {**overrides, "timestep_spacing": "linspace"}
    scheduler = getattr(diffusers, class_name).from_config(dict(config), **overrides)
    if goes_by_stride:
        _spread_evenly(scheduler)
    if name == "KLMS":
        scheduler.step = _by_own_history(scheduler)
    if name == "K_EULER_ANCESTRAL" or (name == "DDIM" and eta > 0):
        scheduler.step = _in_fp32(scheduler.step)
    return scheduler


def skip_to_last(scheduler: Any, steps: int) -> Tensor:
    """Let `scheduler`, which has all its timesteps, take its last `steps` steps only; returns their timesteps [calls].

    PNDM begins as it begins from noise, with its second timestep twice. diffusers' image-to-image drops the first of
    the two, and PNDM stays a step behind until the end, where noise remains in the image.
    """
    if isinstance(scheduler, diffusers.PNDMScheduler):
        return _in_plms_order(scheduler.timesteps.unique()[:steps])
    skipped = (scheduler.num_inference_steps - steps) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    timesteps: Tensor = scheduler.timesteps[skipped:]
    return timesteps


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


def _spread_evenly(scheduler: Any) -> None:
    """Let a DDIM or PNDM scheduler with n steps cover all T training timesteps, also where n doesn't divide T.

    diffusers takes strides of T // n: with 334 of 1000, its steps begin at t = 667. Here timestep i of n is
    floor(T i / n) + steps_offset, and each step goes to the next timestep in the list. Where n divides T, that is
    diffusers' own, to the bit.
    """
    plain_set_timesteps, plain_step = scheduler.set_timesteps, scheduler.step
    total, spacing = scheduler.config.num_train_timesteps, scheduler.config.timestep_spacing

    @functools.wraps(plain_set_timesteps)  # the pipeline looks at both signatures
    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        plain_set_timesteps(num_inference_steps, device)
        even = torch.arange(num_inference_steps, device=device) * total // num_inference_steps
        if spacing == "leading":
            even = even + scheduler.config.steps_offset
        elif spacing == "trailing":
            even = (total - 1 - even).flip(0)
        else:
            even = scheduler.timesteps.unique()
        is_pndm = isinstance(scheduler, diffusers.PNDMScheduler)
        scheduler.timesteps = _in_plms_order(even) if is_pndm else even.flip(0)

    @functools.wraps(plain_step)
    def step(model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        # diffusers' stride is T // num_inference_steps.
        scheduler.num_inference_steps = Fraction(total, _stride(scheduler, int(timestep)))
        return plain_step(model_output, timestep, sample, **options)

    scheduler.set_timesteps, scheduler.step = set_timesteps, step


def _stride(scheduler: Any, timestep: int) -> int:
    """How many training timesteps a step of DDIM or PNDM from `timestep` covers."""
    ascending = scheduler.timesteps.unique().tolist()
    place = ascending.index(timestep)
    if getattr(scheduler, "counter", 0) == 1:  # PNDM takes its first step again, from its end
        return int(ascending[place + 1] - timestep)
    return int(timestep - ascending[place - 1]) if place else int(scheduler.config.num_train_timesteps)


def _in_plms_order(ascending: Tensor) -> Tensor:
    """Descending, with the second one twice: PLMS improves its first step by the model's output at the end of it."""
    timesteps = ascending.flip(0)
    return torch.cat([timesteps[:2], timesteps[1:]])


def _by_own_history(scheduler: Any) -> Any:
    """LMS's step, whose order is that of the steps taken so far.

    diffusers takes the order from the place in the list: its first step from an image would be of the fourth order,
    with a single derivative.
    """
    step = scheduler.step

    @functools.wraps(step)
    def ordered(model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        order = min(LMS_ORDER, len(scheduler.derivatives) + 1)
        return step(model_output, timestep, sample, order=order, **options)

    return ordered


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
