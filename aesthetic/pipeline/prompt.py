"""Words become tokens, and tokens conditioning, with a text encoder that is left as it is.

CLIP reads 77 tokens at a time. A long prompt may be read in chunks of so many, as the web UIs do: each is encoded on
its own, and the diffusion model is conditioned on all of them, one after the other. compel cuts them. Its notation of
weights is not used: it gives a meaning to "C++", and eight open parentheses keep its parser busy for a minute.
"""

import logging
from dataclasses import dataclass
from typing import Any

import compel
import torch
from torch import Tensor

from .. import parsing
from ..models.loading import Model

__all__ = ["Conditioning", "Tokens", "embed", "encode", "read", "tokenize", "warn_of_truncation"]

log = logging.getLogger(__name__)

MAX_CHUNKS = 10  # 2000 characters of English are seven or eight


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A prompt as CLIP reads it, in n chunks: one, unless it is long and may be.

    input_ids: [n, 77], int64, on the model's device, each chunk with its two marks and padded.
    weights:   [n, 77], fp32, 0 to 2: how much each token is to count.
    lost:      the end of the prompt that did not fit, as words; "" if all of it did.
    """

    input_ids: Tensor
    weights: Tensor
    truncated: str


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What steers the denoising, in the precision of the text encoder.

    positive, negative: [1, m × 77, hidden], m being the chunks of the longer one.
    empty:              [1, 77, hidden], that of no words at all.
    """

    positive: Tensor
    negative: Tensor
    empty: Tensor

    def joined(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """[1, m × 77, hidden] of what an encoder, whichever, made of the chunks of `tokens`: see `_join`."""
        return _join(hidden, tokens.weights, self.empty.to(hidden.dtype), self.positive.shape[1])


def tokenize(model: Model, prompt: str, *, long: bool = False) -> Tokens:
    """The tokens of `prompt` as the model's own tokenizer has them; see `read`."""
    return read(model.pipeline.tokenizer, prompt, model.device, long=long)


def read(tokenizer: Any, prompt: str, device: torch.device, *, long: bool = False) -> Tokens:
    """The tokens of `prompt`, cut to one chunk: 75 between the two that mark start and end.

    long: up to 10 chunks instead, which end where a phrase does if they can; and weights as in (red:1.3) are read.

    Raises RequestError for weights that can't be read.
    """
    room, mode = tokenizer.model_max_length, compel.SplitLongTextMode
    parts = parsing.parse_weights(prompt) if long else [(prompt, 1.0)]
    provider = compel.EmbeddingsProvider(
        tokenizer,
        None,  # which would encode: not asked here
        truncate=False,
        split_long_text_mode=mode.PHRASES if long else mode.BRUTAL,
        device=device,
    )
    texts, weights = [text for text, _ in parts], [weight for _, weight in parts]
    ids, expanded, _ = provider.get_token_ids_and_expand_weights(texts, weights, device)
    ids, expanded = ids.view(-1, room), expanded.view(-1, room)
    kept = MAX_CHUNKS if long else 1
    truncated = tokenizer.decode(ids[kept:].flatten(), skip_special_tokens=True).strip()
    return Tokens(input_ids=ids[:kept], weights=expanded[:kept], truncated=truncated)


@torch.no_grad()
def encode(text_encoder: Any, positive: Tokens, negative: Tokens, empty: Tokens) -> Conditioning:
    """What a plain pipeline makes of two prompts, bit for bit if each is of one chunk and nothing is weighted.

    empty: the tokens of "", which are what weights are measured from and what fills the shorter prompt up, so that
           guidance finds two of a length.
    """

    def hidden(tokens: Tokens) -> Tensor:
        # One by one, since the bits of a batch may depend on its size.
        return torch.cat([text_encoder(chunk).last_hidden_state for chunk in tokens.input_ids.unsqueeze(1)])

    nothing = hidden(empty)
    other = nothing if torch.equal(negative.input_ids, empty.input_ids) else hidden(negative)
    length = max(positive.input_ids.numel(), negative.input_ids.numel())
    return Conditioning(
        positive=_join(hidden(positive), positive.weights, nothing, length),
        negative=_join(other, negative.weights, nothing, length),
        empty=nothing,
    )


@torch.no_grad()
def embed(model: Model, tokens: Tokens) -> Tensor:
    """The text embedding [1, D] of a phrase of one chunk, fp32, unit norm, by the untouched encoder and projection."""
    embeds: Tensor = model.encoder(tokens.input_ids).text_embeds
    unit: Tensor = embeds / embeds.norm(dim=-1, keepdim=True)
    return unit


def _join(hidden: Tensor, weights: Tensor, empty: Tensor, length: int) -> Tensor:
    """Chunks [n, 77, hidden] weighted, one after the other, and filled up with `empty` [1, 77, hidden] to `length`.

    A token of weight w stands at w on the straight line from where no words would have put it (0) to where it is (1, to
    the last bit), and beyond: guidance for single tokens, ComfyUI's formula, and above 1 compel's as well.
    """
    weighted = torch.lerp(empty.float(), hidden.float(), weights.unsqueeze(-1)).to(hidden.dtype)
    missing = length // empty.shape[1] - len(hidden)
    return torch.cat([weighted, empty.expand(missing, -1, -1)]).flatten(0, 1).unsqueeze(0)


def warn_of_truncation(kind: str, tokens: Tokens) -> None:
    """Log what of a text did not fit."""
    if tokens.truncated:
        log.warning("The %s is longer than CLIP can read. What is lost: %s", kind, tokens.truncated)
