"""The samplers on the form, by their names, as diffusers' schedulers.

Each is made anew for every prediction from the model's own scheduler configuration: a scheduler has state, and
one made from another's configuration would inherit what that one had overridden.
"""

from collections.abc import Mapping
from typing import Any

import diffusers

__all__ = ["TABLE", "build"]

# name on the form -> (class in diffusers, what it sets beyond the model's configuration)
TABLE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "PNDM": ("PNDMScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "DPMSolverMultistep": ("DPMSolverMultistepScheduler", {}),
    "K_EULER": ("EulerDiscreteScheduler", {}),
    "K_EULER_ANCESTRAL": ("EulerAncestralDiscreteScheduler", {}),
    "KLMS": ("LMSDiscreteScheduler", {}),
    "HeunDiscrete": ("HeunDiscreteScheduler", {}),
    "KarrasDPM": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


def build(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh scheduler for a name of TABLE; `config` is the snapshot's scheduler configuration, untouched."""
    class_name, overrides = TABLE[name]
    return getattr(diffusers, class_name).from_config(dict(config), **overrides)
