"""Personalized conditioning for your own diffusers pipeline.

    pipe(**prompt_embeds(pipe, "a castle", "fantasy", steps=5), num_inference_steps=20)

The pipeline is not changed: the result is the tensors that it takes in place of prompts. Its own `encode_prompt` makes
them, from personalized copies of its CLIP text encoders.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import DrawingError
from ..gradient import Step
from .prompt import encode_prompts
from .text_encoders import Source, Target, clip_encoders, exchanged, targets
from .trained_copy import TrainedCopy, is_altered

__all__ = ["prompt_embeds"]

log = logging.getLogger(__name__)


def prompt_embeds(
    pipe: Any,
    prompt: str,
    aesthetic: Source | Sequence[Source],
    *,
    negative_prompt: str | None = None,
    steps: int = 10,
    lr: float = 1e-4,
    projection: Tensor | None = None,
    long_prompt: bool = False,
    keep: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """The arguments that replace prompt and negative_prompt in a call of `pipe`, personalized towards `aesthetic`.

    pipe:       a diffusers pipeline with one or more CLIP text encoders: Stable Diffusion 1, 2, XL and 3, FLUX, and
                those for img2img, inpainting and ControlNet of each.
    aesthetic:  an Aesthetic, a name or a path as in `load_aesthetic`, or a vector [1, dim] of any length. Each is of
                one CLIP space: give one for each text encoder that shall be personalized. The log says which were.
    steps, lr:  as in `gradient.personalize`; 0 steps, or an empty prompt, give the pipeline's own encoding.
    projection: CLIP's text projection [dim, hidden], for an encoder without one of its own; None takes that of OpenAI's
                CLIP ViT-L/14, if downloaded.
    long_prompt: read both prompts in chunks, with weights as in (red:1.3), as `tokenize_prompt` does, instead of one
                chunk of each. For Stable Diffusion 1 and 2.
    keep:       a dictionary, to pass again with the next prompt: it keeps the text encoders' copies and, on a GPU, the
                CUDA graphs that train them several times as fast.
    options:    of the pipeline's `encode_prompt`, such as prompt_2 or clip_skip.

    Returns the tensors of the pipeline's `encode_prompt` by their names in a call, on its device and in its precision:
    prompt_embeds [1, tokens, hidden], and negative_prompt_embeds, pooled_prompt_embeds [1, dim] and
    negative_pooled_prompt_embeds where it has them. The negative prompt is encoded by the untouched encoders.

    Not for use inside torch.inference_mode. Raises CheckpointError if no projection is given or downloaded;
    EmbeddingError if an aesthetic fits none of the encoders (a projection in memory is known by its dimensions and
    digest); ValueError for a pipeline without a CLIP text encoder, for several prompts, for no aesthetic, if
    projection, text encoder and vector do not belong together, if projection or vector has no direction, or if steps
    or lr are negative; RequestError if a weight can't be read; DrawingError if the personalization diverges; and what
    `load_aesthetic` raises.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt_embeds takes one prompt, a string, not {prompt!r}")  # noqa: TRY004
    if steps < 0 or not lr >= 0:
        raise ValueError(f"steps and lr must be 0 or more, not {steps} and {lr}")
    encoders, is_plain = clip_encoders(pipe), steps == 0 or not prompt.strip()
    sources = [aesthetic] if isinstance(aesthetic, Source) else aesthetic
    found = {} if is_plain else targets(encoders, sources, projection)
    personalize = partial(_personalize, keep=keep, steps=steps, lr=lr)
    if long_prompt:
        if len(encoders) > 1 or options:
            raise ValueError(f"long_prompt is for one text encoder, and takes no options: {[*encoders, *options]}")
        return _long(pipe, prompt, negative_prompt or "", found, personalize)
    given: dict[str, Any] = {"prompt": prompt, "prompt_2": None, "prompt_3": None, "negative_prompt": negative_prompt}
    given |= {"device": pipe._execution_device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    plain, tokens = _encode(pipe, encoders, given, options)
    for name in encoders.keys() - found.keys() if found else ():
        log.info("%s stays as it is: no aesthetic of its CLIP space was given", name)
    copies = {name: personalize(name, encoders[name], tokens[name], target)[0] for name, target in found.items()}
    if copies:
        positive = given | {"negative_prompt": None, "do_classifier_free_guidance": False}
        moved, _ = _encode(exchanged(pipe, copies), copies, positive, options)
        plain |= {name: moved[name].to(plain[name].dtype) for name in plain if not name.startswith("negative")}
    if copies and not all(tensor.isfinite().all() for tensor in plain.values()):
        raise DrawingError(f"the personalization diverged: lower lr ({lr}) or steps ({steps})")
    return plain


def _encode(
    pipe: Any, encoders: Mapping[str, Any], given: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the pipeline's `encode_prompt` returns, by name, and the tokens [1, 77] that it gives each text encoder.

    given: arguments, of which it gets those that it has. options: the caller's, all of which it gets.
    """
    names = inspect.signature(pipe.encode_prompt).parameters
    if given["negative_prompt"] is not None and "negative_prompt" not in names:
        raise ValueError(
            f"{type(pipe).__name__} encodes a negative prompt by itself: call prompt_embeds for it with 0 steps, and "
            "put negative_ before the names of what it returns"
        )
    inputs = {name: value for name, value in given.items() if name in names}
    with ExitStack() as stack, torch.no_grad():
        tokens = {name: stack.enter_context(_seen_tokens(getattr(pipe, name))) for name in encoders}
        found = pipe.encode_prompt(**{**inputs, **options})
    tensors = dict(zip([name for name in names if name.endswith("prompt_embeds")], found, strict=False))
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}  # as without guidance
    return tensors, {name: first for name, [first, *_] in tokens.items()}


@contextmanager
def _seen_tokens(encoder: Any) -> Iterator[list[Tensor]]:
    """Collects what a text encoder is called with: the prompt's tokens come first."""
    seen: list[Tensor] = []
    handle = encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _personalize(
    name: str, encoder: Any, tokens: Tensor, target: Target, *, keep: dict[str, Any] | None, steps: int, lr: float
) -> tuple[Any, Step]:
    """A personalized copy of a text encoder, and its last step. Logs the similarity before and after."""
    if keep is None or is_altered(encoder):
        copied = TrainedCopy(encoder, target, tokens.device)
    elif name in keep and keep[name].is_of(encoder):
        copied = keep[name]
        copied.refill(target)
    else:
        copied = keep[name] = TrainedCopy(encoder, target, tokens.device, in_graphs=True)
    first, *_, last = copied.personalize(tokens, target.vector.to(tokens.device), steps=steps, lr=lr)
    log.info(
        "%s: similarity to %s %.4f before, %.4f after %d steps",
        *(name, target.name, first.similarity.mean().item(), last.similarity.mean().item(), steps),
    )
    return copied.encoder, last


def _long(
    pipe: Any, prompt: str, negative: str, found: Mapping[str, Target], personalize: Callable[..., tuple[Any, Step]]
) -> dict[str, Tensor]:
    """Both prompts in chunks, which the pipeline's own `encode_prompt` does not read."""
    # A textual inversion of several vectors becomes as many tokens.
    prompt, negative = pipe.maybe_convert_prompt([prompt, negative], pipe.tokenizer)
    plain = encode_prompts(pipe.tokenizer, pipe.text_encoder, prompt, negative, pipe._execution_device, long=True)
    positive = plain.positive
    for name, target in found.items():
        _, last = personalize(name, pipe.text_encoder, plain.tokens.input_ids, target)
        positive = plain.personalized(last, "lr or steps").to(positive.dtype)
    return {"prompt_embeds": positive, "negative_prompt_embeds": plain.negative}
