"""Directions and conditionings, combined: aesthetics mixed, a target turned towards a phrase, an effect weakened.

A direction is a vector of unit norm in a CLIP space; between two of them the way leads along the great circle:
Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985. This file knows no model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import RequestError

__all__ = ["blend", "mix", "slerp", "turn"]

NEAR = 1e-4  # sine of an angle below which two directions are the same, or opposite


def mix(directions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum of unit vectors [1, D], made unit again, in fp32. A negative weight steers away.

    Raises RequestError if the sum is zero.
    """
    total = sum((weight * one.double() for one, weight in zip(directions, weights, strict=True)), torch.zeros(()))
    norm = total.norm(dim=-1, keepdim=True)
    if norm < NEAR * sum(map(abs, weights)):
        raise RequestError("aesthetic_mix comes to nothing: its aesthetics cancel one another out")
    unit: Tensor = total / norm
    return unit.float()


def turn(target: Tensor, phrase: Tensor, angle: float, *, away: bool = False) -> Tensor:
    """`target` [1, D], turned towards `phrase` [1, D] or away from it, both of unit norm; fp32, unit norm.

    angle: share of the way along the great circle, in 0..1: 0 leaves the target, 1 is the phrase, or, with
           `away`, its opposite.

    Raises RequestError if the two ends are opposite, where no way is shorter than the others.
    """
    if angle == 0:
        return target
    return slerp(target.double(), (-phrase if away else phrase).double(), angle).float()


def blend(plain: Tensor, personalised: Tensor, weight: float, *, spherical: bool = False) -> Tensor:
    """Between two conditionings [batch, tokens, hidden]: 0 is the plain one, 1 the personalised, to the last bit.

    spherical: turn each token's direction along the great circle, and let its length grow in proportion, rather
               than going straight, which passes through shorter vectors.

    Raises RequestError if the directions of a token are opposite, and the way is spherical.
    """
    if weight in (0, 1):
        return personalised if weight else plain
    if not spherical:
        return torch.lerp(plain, personalised, weight)
    low, high = plain.norm(dim=-1, keepdim=True), personalised.norm(dim=-1, keepdim=True)
    return slerp(plain / low, personalised / high, weight) * torch.lerp(low, high, weight)


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The unit vectors [..., D] at `share` (0..1) of the great circle from `start` to `end`, both of unit norm.

    Raises RequestError if any two are opposite.
    """
    cosine = (start * end).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    if ((sine < NEAR) & (cosine < 0)).any():
        raise RequestError("there is no way between opposite directions: choose another aesthetic_text or weight")
    same = sine < NEAR
    safe = torch.where(same, torch.ones_like(sine), sine)
    first = torch.where(same, torch.full_like(sine, 1 - share), ((1 - share) * angle).sin() / safe)
    second = torch.where(same, torch.full_like(sine, share), (share * angle).sin() / safe)
    between = first * start + second * end
    unit: Tensor = between / between.norm(dim=-1, keepdim=True)
    return unit
