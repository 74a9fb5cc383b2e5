"""diffusers' schedulers for the samplers of request.SCHEDULERS, corrected to start at full noise and end without.

A scheduler has state, so each prediction gets a new one. It is made from the model's own scheduler configuration: one
made from another scheduler's configuration would inherit that one's overrides.
"""

import functools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import diffusers
import torch
from torch import Tensor

from ..request import SCHEDULERS

__all__ = ["build", "on_cpu", "skip_to_last"]

LMS_ORDER = 4  # diffusers' default


def build(name: str, config: Mapping[str, Any], *, eta: float = 0.0) -> Any:
    """A new scheduler.

    name:   a key of SCHEDULERS.
    config: the snapshot's scheduler configuration; it is not changed.
    eta:    DDIM's noise, 0..1, as the pipeline will pass it to the steps.
    """
    overrides = SCHEDULERS[name].config
    has_stride = name in ("PNDM", "DDIM")
    if not has_stride and config.get("timestep_spacing") == "leading":
        # "leading" starts late where the steps don't divide 1000: DPM-Solver with 500 steps at t = 501.
        overrides = {**overrides, "timestep_spacing": "linspace"}
    scheduler = getattr(diffusers, SCHEDULERS[name].class_name).from_config(dict(config), **overrides)
    if has_stride:
        _spread_evenly(scheduler)
    if name == "KLMS":
        scheduler.step = _by_own_history(scheduler)
    if name == "K_EULER_ANCESTRAL" or (name == "DDIM" and eta > 0):
        scheduler.step = _in_fp32(scheduler.step)
    return scheduler


def skip_to_last(scheduler: Any, steps: int) -> Tensor:
    """Restrict `scheduler`, whose timesteps are set, to its last `steps` steps; returns their timesteps, [calls].

    PNDM repeats its second timestep, here as from pure noise. diffusers' img2img drops the first of the two, which
    leaves PNDM one step behind until the end, and noise in the image.
    """
    if isinstance(scheduler, diffusers.PNDMScheduler):
        return _in_plms_order(scheduler.timesteps.unique()[:steps])
    skipped = (scheduler.num_inference_steps - steps) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    timesteps: Tensor = scheduler.timesteps[skipped:]
    return timesteps


def on_cpu(scheduler: Any) -> Any:
    """`scheduler` with its timesteps on the CPU, wherever its latents are.

    Each step reads them in Python: a value on a GPU would arrive only after all kernels launched before.
    """
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)  # the pipeline inspects the signature
    def here(*arguments: Any, **options: Any) -> None:
        set_timesteps(*arguments, **{**options, "device": "cpu"})

    scheduler.set_timesteps = here
    return scheduler


def _spread_evenly(scheduler: Any) -> None:
    """Make the n steps of a DDIM or PNDM scheduler cover all T training timesteps, also where n does not divide T.

    diffusers takes strides of T // n: with 334 of 1000, its steps start at t = 667. Here timestep i of n is
    floor(T i / n) + steps_offset, and each step goes to the next timestep in the list. Where n divides T, the result
    equals diffusers' to the bit.
    """
    plain_set_timesteps, plain_step = scheduler.set_timesteps, scheduler.step
    total, spacing = scheduler.config.num_train_timesteps, scheduler.config.timestep_spacing

    @functools.wraps(plain_set_timesteps)  # the pipeline inspects both signatures
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
    """The number of training timesteps covered by DDIM's or PNDM's step from `timestep`."""
    ascending = scheduler.timesteps.unique().tolist()
    place = ascending.index(timestep)
    if getattr(scheduler, "counter", 0) == 1:  # PNDM repeats its first step from that step's end
        return int(ascending[place + 1] - timestep)
    return int(timestep - ascending[place - 1]) if place else int(scheduler.config.num_train_timesteps)


def _in_plms_order(ascending: Tensor) -> Tensor:
    """Descending, the second timestep twice: PLMS corrects its first step with the output at that step's end."""
    timesteps = ascending.flip(0)
    return torch.cat([timesteps[:2], timesteps[1:]])


def _by_own_history(scheduler: Any) -> Any:
    """The step of an LMS scheduler, with an order that grows with the steps taken so far.

    diffusers derives the order from the position in the timesteps: img2img's first step would be of fourth order, with
    a single derivative.
    """
    step = scheduler.step

    @functools.wraps(step)
    def ordered(model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        order = min(LMS_ORDER, len(scheduler.derivatives) + 1)
        return step(model_output, timestep, sample, order=order, **options)

    return ordered


def _in_fp32(step: Any) -> Any:
    """A scheduler's step that draws its noise in fp32 and rounds the result to the model's precision.

    diffusers draws noise in the precision of the model's output, and a generator's fp16 numbers are not its fp32
    numbers rounded: the same seed would give different noise on a GPU and on a CPU.
    """

    @functools.wraps(step)  # the pipeline inspects the signature
    def wider(model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> tuple[Tensor]:
        previous: Tensor = step(model_output.float(), timestep, sample.float(), **options)[0]
        return (previous.to(sample.dtype),)

    return wider
