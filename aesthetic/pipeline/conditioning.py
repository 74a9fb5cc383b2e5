"""The conditioning of a request: the prompt's own, and what becomes of it on the way to an aesthetic.

One run of the personalisation serves every stop of a sweep: what is taken along the way equals what a run of so
many steps ends with. A long prompt is personalised as a batch of chunks: what rises is the mean of their similarities.
"""

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..cancellation import check
from ..embeddings.interpolation import slerp
from ..errors import DrawingError
from ..gradient import Step
from ..models.loading import Model
from ..personalizer import Personalizer
from ..request import Request
from . import prompt
from .prompt import Conditioning, Tokens, warn_of_truncation

__all__ = ["PersonalizedConditioning", "blend", "condition"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PersonalizedConditioning:
    """A conditioning to draw from.

    steps:      towards the aesthetic.
    similarity: -1..1, cosine of the prompt and the aesthetic there, the mean over the prompt's chunks; None if there is
                no aesthetic or no prompt.
    drift:      0 or more, how far the conditioning of the prompt's chunks is from their own, relative to its length.
    """

    steps: int
    conditioning: Conditioning
    similarity: float | None
    drift: float


def condition(
    model: Model, personalizer: Personalizer, request: Request, target: Tensor | None
) -> tuple[PersonalizedConditioning, list[PersonalizedConditioning]]:
    """Where the way starts, and the stops to draw at, in order: one, or those of the sweep.

    target: [1, D] fp32, unit norm; None for the plain model, whose way ends where it starts.

    An empty prompt stays where it starts, too, as in the original code. A sweep whose personalization diverges has the
    stops before that. Raises DrawingError if there is none.
    """
    tokens, negative, empty = (
        prompt.tokenize(model, text, long=request.long_prompt) for text in (request.prompt, request.negative_prompt, "")
    )
    warn_of_truncation("prompt", tokens)
    warn_of_truncation("negative prompt", negative)
    if (tokens.truncated or negative.truncated) and not request.long_prompt:
        log.warning("With long_prompt, more of it is read")
    plain = prompt.encode(model.pipeline.text_encoder, tokens, negative, empty)
    is_empty = torch.equal(tokens.input_ids, empty.input_ids)
    if is_empty and target is not None:
        log.warning("The prompt is empty, so there is nothing to personalize")
    if is_empty or target is None:
        start = PersonalizedConditioning(steps=0, conditioning=plain, similarity=None, drift=0.0)
        return start, [start]
    wanted = request.sweep or (request.aesthetic_steps,)
    stops: list[PersonalizedConditioning] = []
    with tqdm(total=wanted[-1], desc="Personalising") as bar:
        for step in personalizer(tokens.input_ids, target.to(model.device), steps=wanted[-1], lr=request.aesthetic_lr):
            check()
            if step.index == 0:
                first, start = step, _stop(request, plain, tokens, step)
            else:
                bar.update()
            is_enough = step.index > 0 and _has_risen(first, step, request.aesthetic_until)
            if step.index in wanted or is_enough:
                try:
                    stops.append(_stop(request, plain, tokens, step) if step.index else start)
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


def _stop(request: Request, plain: Conditioning, tokens: Tokens, step: Step) -> PersonalizedConditioning:
    own = plain.positive
    if step.index == 0:
        return PersonalizedConditioning(
            steps=0, conditioning=plain, similarity=step.similarity.mean().item(), drift=0.0
        )
    if not step.conditioning.to(own.dtype).isfinite().all():
        raise DrawingError(
            f"the personalization diverged by step {step.index}: lower aesthetic_lr ({request.aesthetic_lr}) or the "
            "number of steps" + (f" or lora_scale ({request.lora_scale})" if request.lora else "")
        )
    personalized = plain.joined(step.conditioning, tokens)
    length = tokens.input_ids.numel()  # a longer negative prompt pads the prompt's chunks with empty ones
    moved = blend(own.float(), personalized, request.aesthetic_weight, spherical=request.aesthetic_slerp)
    return PersonalizedConditioning(
        steps=step.index,
        conditioning=replace(plain, positive=moved.to(own.dtype)),
        similarity=step.similarity.mean().item(),
        drift=((moved - own)[:, :length].norm() / own[:, :length].float().norm()).item(),
    )


def blend(plain: Tensor, personalized: Tensor, weight: float, *, spherical: bool = False) -> Tensor:
    """Between two conditionings [batch, tokens, hidden]: 0 is the plain one, 1 the personalised, to the last bit.

    spherical: turn each token's direction along the great circle, and let its length grow in proportion, rather
               than going straight, which passes through shorter vectors.
    """
    if weight in (0, 1):
        return personalized if weight else plain
    straight = torch.lerp(plain, personalized, weight)
    if not spherical:
        return straight
    low, high = plain.norm(dim=-1, keepdim=True), personalized.norm(dim=-1, keepdim=True)
    around = (slerp(plain, personalized, weight) * torch.lerp(low, high, weight)).to(plain.dtype)
    has_way = around.isfinite().all(-1, keepdim=True)  # not where a token is the same in both, opposite, or zero
    return torch.where(has_way, around, straight)
