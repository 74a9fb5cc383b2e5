"""The conditioning of a request: the prompt's own, and the personalized one at each stop of a sweep.

One run of the personalization serves all stops, since n steps are the beginning of any longer run. A long prompt is
personalized as a batch of chunks: the mean of their similarities rises.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..cancellation import check
from ..embeddings.interpolation import slerp
from ..errors import DrawingError
from ..gradient import Step
from ..models.loading import Model
from ..request import Request
from .prompt import Conditioning, encode_for

__all__ = ["PersonalizedConditioning", "blend", "condition"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PersonalizedConditioning:
    """A conditioning to draw from.

    steps:      of the personalization.
    similarity: -1..1: cosine of prompt and aesthetic after these steps, averaged over the prompt's chunks; None for the
                plain model and for an empty prompt.
    drift:      0 or more: distance from the prompt's own conditioning, relative to the length of that.
    """

    steps: int
    conditioning: Conditioning
    similarity: float | None
    drift: float


def condition(
    model: Model, personalizer: Callable[..., Iterator[Step]], request: Request, target: Tensor | None
) -> tuple[PersonalizedConditioning, list[PersonalizedConditioning]]:
    """The conditioning without personalization, and those to draw from, in order: one, or the stops of the sweep.

    personalizer: a Personalizer, or what stands for it.
    target:       [1, D] fp32, unit norm; None draws from the prompt's own conditioning.

    An empty prompt is not personalized, as in the original code. If the personalization diverges, a sweep ends with the
    stop before; raises DrawingError if it has none.
    """
    plain = encode_for(model, request.prompt, request.negative_prompt, long=request.long_prompt)
    if plain.is_empty and target is not None:
        log.warning("The prompt is empty, so there is nothing to personalize")
    if plain.is_empty or target is None:
        start = PersonalizedConditioning(steps=0, conditioning=plain, similarity=None, drift=0.0)
        return start, [start]
    wanted = request.sweep or (request.aesthetic_steps,)
    stops: list[PersonalizedConditioning] = []
    ids = plain.tokens.input_ids
    with tqdm(total=wanted[-1], desc="Personalizing") as bar:
        for step in personalizer(ids, target.to(model.device), steps=wanted[-1], lr=request.aesthetic_lr):
            check()
            bar.update(step.index - bar.n)
            if step.index == 0:
                first, start = step, _stop(request, plain, step)
            is_enough = step.index > 0 and _has_risen(first, step, request.aesthetic_until)
            if step.index in wanted or is_enough:
                try:
                    stops.append(_stop(request, plain, step))
                except DrawingError as error:
                    if not stops:
                        raise
                    log.warning("The sweep ends at %d steps: %s", stops[-1].steps, error)
                    break
            if is_enough:
                break
    return start, stops


def _has_risen(first: Step, step: Step, wanted: float | None) -> bool:
    return wanted is not None and (step.similarity.mean() - first.similarity.mean()).item() >= wanted


def _stop(request: Request, plain: Conditioning, step: Step) -> PersonalizedConditioning:
    """The conditioning after a step, blended with the prompt's own. Raises DrawingError if it is not finite."""
    conditioning, drift = plain, 0.0
    if step.index > 0:
        personalized = plain.personalized(
            step,
            f"aesthetic_lr ({request.aesthetic_lr}) or the number of steps"
            + (f" or lora_scale ({request.lora_scale})" if request.lora else ""),
        )
        own = plain.positive
        moved = blend(own.float(), personalized, request.aesthetic_weight, spherical=request.aesthetic_slerp)
        conditioning = replace(plain, positive=moved.to(own.dtype))
        length = plain.tokens.input_ids.numel()  # without the chunks that pad it to a longer negative prompt
        drift = ((moved - own)[:, :length].norm() / own[:, :length].float().norm()).item()
    return PersonalizedConditioning(
        steps=step.index, conditioning=conditioning, similarity=step.similarity.mean().item(), drift=drift
    )


def blend(plain: Tensor, personalized: Tensor, weight: float, *, spherical: bool = False) -> Tensor:
    """Interpolate two conditionings [batch, tokens, hidden]; weight 0 gives `plain` and 1 `personalized`, bit for bit.

    spherical: interpolate each token's direction along the great circle and its length linearly. Linear interpolation
               shortens vectors between two directions.
    """
    if weight in (0, 1):
        return personalized if weight else plain
    straight = torch.lerp(plain, personalized, weight)
    if not spherical:
        return straight
    low, high = plain.norm(dim=-1, keepdim=True), personalized.norm(dim=-1, keepdim=True)
    around = (slerp(plain, personalized, weight) * torch.lerp(low, high, weight)).to(plain.dtype)
    is_defined = around.isfinite().all(-1, keepdim=True)  # not for equal, opposite or zero vectors
    return torch.where(is_defined, around, straight)
