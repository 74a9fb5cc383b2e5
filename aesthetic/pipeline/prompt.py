"""Tokenize prompts, and encode them with the untouched text encoder.

CLIP reads 77 tokens at a time. As in the web UIs, a long prompt can be cut into chunks: each chunk is encoded on its
own, and the diffusion model is conditioned on the concatenation of all.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import parsing
from ..errors import DrawingError
from ..gradient import Step
from ..models.loading import Model

__all__ = [
    "Conditioning",
    "Tokens",
    "embed",
    "encode",
    "encode_for",
    "encode_prompts",
    "tokenize_prompt",
    "warn_of_truncation",
]

log = logging.getLogger(__name__)

MAX_CHUNKS = 10  # 2000 characters of English take seven or eight
WORD_END = "</w>"
PHRASE_ENDS = tuple(mark + WORD_END for mark in ".,;:")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A prompt as CLIP reads it, in n chunks: 1, or up to 10 for a long prompt.

    input_ids: [n, 77], int64: each chunk between its start and end tokens, padded.
    weights:   [n, 77], fp32, 0 to 2: how much each token counts.
    truncated: the end of the prompt that did not fit, as text; "" if all of it fit.
    """

    input_ids: Tensor
    weights: Tensor
    truncated: str


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The last hidden states that condition the UNet, in the precision of the text encoder.

    positive, negative: [1, m × 77, hidden], m being the number of chunks of the longer prompt.
    empty:              [1, 77, hidden]: that of an empty prompt.
    tokens:             of the positive prompt.
    is_empty:           whether the positive prompt has no tokens.
    pooled:             text embeddings [1, dim] of the first chunk of positive and negative prompt, if the text encoder
                        has a projection.
    second:             that of Stable Diffusion XL's second text encoder, which is not personalized.
    """

    positive: Tensor
    negative: Tensor
    empty: Tensor
    tokens: Tokens
    is_empty: bool
    pooled: tuple[Tensor, Tensor] | None = None
    second: "Conditioning | None" = None

    @property
    def arguments(self) -> dict[str, Tensor]:
        """For a call of the pipeline."""
        if self.second is None or self.second.pooled is None:
            return {"prompt_embeds": self.positive, "negative_prompt_embeds": self.negative}
        return {
            "prompt_embeds": torch.cat([self.positive, self.second.positive], -1),
            "negative_prompt_embeds": torch.cat([self.negative, self.second.negative], -1),
            "pooled_prompt_embeds": self.second.pooled[0],
            "negative_pooled_prompt_embeds": self.second.pooled[1],
        }

    def personalized(self, step: Step, remedy: str) -> Tensor:
        """The positive conditioning after a step of the personalization: [1, m × 77, hidden] in the step's precision.

        Raises DrawingError, which advises to lower `remedy`, if it is not finite in the precision of the text encoder.
        """
        hidden = step.conditioning
        joined = _join(hidden, self.tokens.weights, self.empty.to(hidden.dtype), self.positive.shape[1])
        if not joined.to(self.positive.dtype).isfinite().all():
            raise DrawingError(f"the personalization diverged by step {step.index}: lower {remedy}")
        return joined


def tokenize_prompt(tokenizer: Any, prompt: str, device: torch.device, *, long: bool = False) -> Tokens:
    """The tokens of `prompt`, cut to one chunk: 75 between the start and end tokens.

    long: read weights as in (red:1.3), and cut to 10 chunks. Each ends after the last punctuation mark that fits, else
          after the last word, else anywhere.

    Raises RequestError for weights that can't be read.
    """
    parts = parsing.parse_weights(prompt) if long else [(prompt, 1.0)]
    read = [(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, weight) for text, weight in parts]
    ids = [token for tokens, _ in read for token in tokens]
    weights = [weight for tokens, weight in read for _ in tokens]
    room = tokenizer.model_max_length - 2
    rows: list[list[int]] = []
    weight_rows: list[list[float]] = []
    while not rows or (ids and len(rows) < (MAX_CHUNKS if long else 1)):
        end = _chunk_end(tokenizer.convert_ids_to_tokens(ids[: room + 1]), room) if long else room
        padding = room - len(ids[:end])
        rows.append([tokenizer.bos_token_id, *ids[:end], tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding])
        weight_rows.append([1.0, *weights[:end], 1.0, *[1.0] * padding])
        ids, weights = ids[end:], weights[end:]
    return Tokens(
        input_ids=torch.tensor(rows, device=device),
        weights=torch.tensor(weight_rows, dtype=torch.float32, device=device),
        truncated=tokenizer.decode(ids, skip_special_tokens=True).strip(),
    )


def _chunk_end(tokens: Sequence[str], room: int) -> int:
    """How many of the next tokens go into one chunk of at most `room`."""
    if len(tokens) <= room:
        return room
    places = range(room, 0, -1)
    phrase_ends = (end for end in places if tokens[end - 1] in PHRASE_ENDS)
    word_ends = (end for end in places if tokens[end - 1].endswith(WORD_END))
    return next(phrase_ends, None) or next(word_ends, room)


def encode_for(model: Model, prompt: str, negative_prompt: str, *, long: bool) -> Conditioning:
    """The conditioning of two prompts for a model; logs truncated text. Raises RequestError as `tokenize_prompt` does.

    Stable Diffusion XL has learned zeros for a blank negative prompt, if its configuration says so.
    """
    parts, device = model.pipeline, model.device
    first = encode_prompts(parts.tokenizer, parts.text_encoder, prompt, negative_prompt, device, long=long)
    if not model.is_xl:
        return first
    texts = (tokenize_prompt(parts.tokenizer_2, text, device, long=long) for text in (prompt, negative_prompt, ""))
    second = encode(parts.text_encoder_2, *texts)
    if not negative_prompt and parts.config.force_zeros_for_empty_prompt:
        assert second.pooled is not None
        positive, pooled = second.pooled
        zeros = torch.zeros_like
        second = replace(second, negative=zeros(second.negative), pooled=(positive, zeros(pooled)))
        first = replace(first, negative=zeros(first.negative))
    return replace(first, second=second)


def encode_prompts(
    tokenizer: Any, text_encoder: Any, prompt: str, negative_prompt: str, device: torch.device, *, long: bool
) -> Conditioning:
    """The conditioning of two prompts; logs truncated text. Raises RequestError as `tokenize_prompt` does."""
    positive, negative, empty = (
        tokenize_prompt(tokenizer, text, device, long=long) for text in (prompt, negative_prompt, "")
    )
    warn_of_truncation("prompt", positive)
    warn_of_truncation("negative prompt", negative)
    if (positive.truncated or negative.truncated) and not long:
        log.warning("With long_prompt, more of it is read")
    return encode(text_encoder, positive, negative, empty)


@torch.no_grad()
def encode(text_encoder: Any, positive: Tokens, negative: Tokens, empty: Tokens) -> Conditioning:
    """The conditioning of two prompts: a plain pipeline's to the last bit, if each is one chunk and has no weights.

    empty: the tokens of "". Weights are relative to its conditioning, and its chunks pad the shorter prompt, since
           guidance needs both of equal length.
    """

    def read(tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Hidden states of all chunks, and the pooled embedding of the first."""
        # One by one: the last bits of results may depend on the batch size.
        outputs = [text_encoder(chunk) for chunk in tokens.input_ids.unsqueeze(1)]
        return torch.cat([one.last_hidden_state for one in outputs]), getattr(outputs[0], "text_embeds", None)

    nothing, pooled_nothing = read(empty)
    is_blank = torch.equal(negative.input_ids, empty.input_ids)
    (hidden, pooled), (other, other_pooled) = read(positive), (nothing, pooled_nothing) if is_blank else read(negative)
    length = max(positive.input_ids.numel(), negative.input_ids.numel())
    return Conditioning(
        positive=_join(hidden, positive.weights, nothing, length),
        negative=_join(other, negative.weights, nothing, length),
        empty=nothing,
        tokens=positive,
        is_empty=torch.equal(positive.input_ids, empty.input_ids),
        pooled=None if pooled is None or other_pooled is None else (pooled, other_pooled),
    )


@torch.no_grad()
def embed(model: Model, tokens: Tokens) -> Tensor:
    """The text embedding [1, D] of a phrase of one chunk, fp32, unit norm, by the untouched encoder and projection."""
    embeds: Tensor = model.encoder(tokens.input_ids).text_embeds
    unit: Tensor = embeds / embeds.norm(dim=-1, keepdim=True)
    return unit


def _join(hidden: Tensor, weights: Tensor, empty: Tensor, length: int) -> Tensor:
    """Chunks [n, 77, hidden], weighted, concatenated and padded with `empty` [1, 77, hidden]: [1, length, hidden].

    A weight w takes a token's vector v to e + w (v − e), e being the vector at its place in `empty`; a weight of 1
    changes no bit. This is ComfyUI's formula, and for weights above 1 also compel's.
    """
    weighted = torch.lerp(empty.float(), hidden.float(), weights.unsqueeze(-1)).to(hidden.dtype)
    missing = length // empty.shape[1] - len(hidden)
    return torch.cat([weighted, empty.expand(missing, -1, -1)]).flatten(0, 1).unsqueeze(0)


def warn_of_truncation(kind: str, tokens: Tokens) -> None:
    """Log the part of a text that did not fit."""
    if tokens.truncated:
        log.warning("The %s is longer than CLIP can read. Truncated: %s", kind, tokens.truncated)
