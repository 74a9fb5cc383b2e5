"""How far personalisation goes inside CLIP, before anything is drawn: towards the aesthetic, and away from the subject.

The loop is the paper's (Gallego, arXiv 2209.12330): Adam on the text tower, the negative cosine of the prompt's
embedding and the aesthetic as its loss. It is written out here, since the training needs nothing of the service.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from . import captions
from .clip import normalised
from .library import Library
from .settings import DEMO, PROMPTS, TOKENS

__all__ = ["follow", "load_text", "personalize", "tokenize"]

STEPS = (0, 1, 2, 3, 5, 10, 20)
RATE = 1e-4  # the service's default


def follow(library: Library, every: int = 3) -> str:
    """A table of every third prompt of PROMPTS × all aesthetics, as markdown.

    library: pictures to make the aesthetics of.
    """
    targets = _aesthetics(library)
    tokens = tokenize(PROMPTS)
    with torch.no_grad():
        prompts = _embed(load_text(), tokens)
    chosen = range(0, len(PROMPTS), every)
    found: dict[int, list[tuple[bool, bool, float]]] = {step: [] for step in STEPS}
    pairs = [(prompt, number) for prompt in chosen for number in range(len(targets))]
    for prompt, number in tqdm(pairs, desc="Following", unit=" aesthetics"):
        way = personalize(load_text(), tokens[prompt : prompt + 1], targets[number : number + 1])
        for step, [unit] in enumerate(islice(way, max(STEPS) + 1)):
            if step not in STEPS:
                continue
            near, kept = (unit @ targets.T).argmax().item() == number, (unit @ prompts.T).argmax().item() == prompt
            found[step].append((near, kept, (unit @ targets[number]).item()))
    head = (
        f"| steps | the aesthetic is the nearest of {len(targets)} | the prompt is still its own nearest of "
        f"{len(PROMPTS)} | cosine |\n"
        "|---|---|---|---|\n"
    )
    return head + "\n".join(_row(step, found[step]) for step in STEPS)


def _row(step: int, found: list[tuple[bool, bool, float]]) -> str:
    near, kept, cosine = (sum(values) / len(found) for values in zip(*found, strict=True))
    return f"| {step} | {near:.0%} | {kept:.0%} | {cosine:.2f} |"


def personalize(text: Any, tokens: Tensor, target: Tensor) -> Iterator[Tensor]:
    """Move a text encoder towards a unit vector [1, dim], a step each time more is asked for.

    Gives the prompts' unit embeddings [N, dim], first those of the encoder as it came.
    """
    text.text_projection.requires_grad_(False)
    optimizer = torch.optim.Adam(text.text_model.parameters(), lr=RATE)
    while True:
        units = _embed(text, tokens)
        yield units.detach()
        optimizer.zero_grad()
        (-units @ target.T).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def load_text() -> Any:
    """The demo's text encoder, CLIPTextModelWithProjection in fp32."""
    return CLIPTextModelWithProjection.from_pretrained(DEMO / "text_encoder")


def tokenize(labels: Sequence[str]) -> Tensor:
    """[N, TOKENS], of prompts that say no more than what there is to see."""
    clip = CLIPTokenizer.from_pretrained(DEMO / "tokenizer")
    words = [captions.with_article(label) for label in labels]
    ids: Tensor = clip(words, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    return ids


def _embed(text: Any, tokens: Tensor) -> Tensor:
    """Unit embeddings [N, dim]."""
    return F.normalize(text(input_ids=tokens).text_embeds, dim=-1)


@torch.no_grad()
def _aesthetics(library: Library) -> Tensor:
    """The unit mean [aesthetics, dim] of the pictures of each style."""
    vision = CLIPVisionModelWithProjection.from_pretrained(DEMO / "image_encoder")
    features = vision(pixel_values=normalised(library.small.cpu())).image_embeds
    numbers = [captions.STYLES.index(name) for name in captions.AESTHETICS]
    return F.normalize(torch.stack([features[library.style.cpu() == number].mean(0) for number in numbers]), dim=-1)
