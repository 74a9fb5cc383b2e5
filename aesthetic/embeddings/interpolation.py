"""Unit vectors of a CLIP space: mixed, or turned towards one another along a great circle.

Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RequestError

__all__ = ["mix", "slerp", "turn"]

TINY = 1e-7  # distance of unit vectors below which they are the same
NEAR = 1e-3  # length of a sum of unit vectors below which its direction is noise


def mix(directions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum of unit vectors [1, D], normalized, in fp32. Raises RequestError if it has no direction."""
    largest = max(map(abs, weights), default=0.0)
    total = torch.zeros((), dtype=torch.float64)
    for direction, weight in zip(directions, weights, strict=True):
        total = total + (weight / largest if largest else 0.0) * direction.double()
    norm = total.norm(dim=-1, keepdim=True)
    if not (norm >= NEAR).all():
        raise RequestError("the aesthetics of the mix cancel one another out: change a weight")
    unit: Tensor = total / norm
    return unit.float()


def turn(target: Tensor, phrase: Tensor, angle: float, *, away: bool = False) -> Tensor:
    """`target` [1, D], turned towards `phrase` [1, D] or away from it, all fp32 of unit norm.

    angle: share of the great circle, in 0..1: 0 leaves the target, 1 is the phrase or, with `away`, its opposite.

    Raises RequestError if the two ends are opposite, where the shortest way is not unique.
    """
    if angle == 0:
        return target
    end = -phrase if away else phrase
    turned = slerp(target, end, angle)
    if turned.isfinite().all():
        return turned.float()
    if (target * end).sum() > 0:  # the same direction
        return target
    raise RequestError(
        "aesthetic_text leads to the exact opposite of the aesthetic, where the shortest way is not unique: "
        f"choose another phrase, or set aesthetic_text_negative to {str(not away).lower()}"
    )


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The unit vectors [..., D], fp64, at `share` (0..1) of the great circle from `start` to `end`, of any length.

    nan where the two have the same or opposite directions, or one of them is zero.
    """
    start, end = (one.double() / one.double().norm(dim=-1, keepdim=True) for one in (start, end))
    apart, along = (start - end).norm(dim=-1, keepdim=True), (start + end).norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(apart, along)
    between = (((1 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin()
    unit: Tensor = between / between.norm(dim=-1, keepdim=True)
    return torch.where((apart < TINY) | (along < NEAR), torch.nan, unit)
