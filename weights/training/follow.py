"""How far personalization goes inside CLIP, without drawing: towards the aesthetic and away from the subject."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from aesthetic.gradient import personalize

from . import captions
from .clip import normalised
from .library import Library
from .settings import DEMO, PROMPTS, TOKENS

__all__ = ["RATE", "STEPS", "follow", "load_text", "tokenize"]

STEPS = (0, 1, 2, 3, 5, 10, 20)
RATE = 1e-4  # the service's default


def follow(library: Library, every: int = 3) -> str:
    """A table of every third prompt of PROMPTS × all aesthetics, as Markdown.

    library: images to make the aesthetics of.
    """
    targets = _aesthetics(library)
    tokens = tokenize(PROMPTS)
    prompts = _embed(load_text(), tokens)
    chosen = range(0, len(PROMPTS), every)
    found: dict[int, list[tuple[bool, bool, float]]] = {step: [] for step in STEPS}
    pairs = [(prompt, number) for prompt in chosen for number in range(len(targets))]
    for prompt, number in tqdm(pairs, desc="Following", unit=" aesthetics"):
        text, ids, target = load_text(), tokens[prompt : prompt + 1], targets[number : number + 1]
        for step in personalize(text, ids, target, steps=max(STEPS), lr=RATE):
            if step.index in STEPS:
                [unit] = _embed(text, ids)
                near, kept = (unit @ targets.T).argmax().item() == number, (unit @ prompts.T).argmax().item() == prompt
                found[step.index].append((near, kept, step.similarity.item()))
    head = (
        f"| steps | the aesthetic is the nearest of {len(targets)} | the prompt is still its own nearest of "
        f"{len(PROMPTS)} | cosine |\n"
        "|---|---|---|---|\n"
    )
    return head + "\n".join(_row(step, found[step]) for step in STEPS)


def _row(step: int, found: list[tuple[bool, bool, float]]) -> str:
    near, kept, cosine = (sum(values) / len(found) for values in zip(*found, strict=True))
    return f"| {step} | {near:.0%} | {kept:.0%} | {cosine:.2f} |"


def load_text() -> Any:
    """The demo's text encoder, CLIPTextModelWithProjection in fp32."""
    return CLIPTextModelWithProjection.from_pretrained(DEMO / "text_encoder")


def tokenize(labels: Sequence[str]) -> Tensor:
    """Token ids [N, TOKENS] of prompts that name the labels only."""
    clip = CLIPTokenizer.from_pretrained(DEMO / "tokenizer")
    words = [captions.with_article(label) for label in labels]
    ids: Tensor = clip(words, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    return ids


@torch.no_grad()
def _embed(text: Any, tokens: Tensor) -> Tensor:
    """Unit embeddings [N, dim]."""
    return F.normalize(text(input_ids=tokens).text_embeds, dim=-1)


@torch.no_grad()
def _aesthetics(library: Library) -> Tensor:
    """The unit mean [aesthetics, dim] of the images of each style."""
    vision = CLIPVisionModelWithProjection.from_pretrained(DEMO / "image_encoder")
    features = vision(pixel_values=normalised(library.small.cpu())).image_embeds
    numbers = [captions.STYLES.index(name) for name in captions.AESTHETICS]
    return F.normalize(torch.stack([features[library.style.cpu() == number].mean(0) for number in numbers]), dim=-1)
