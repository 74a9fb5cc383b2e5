"""CLIP: a text and a vision tower that agree on which caption belongs to which picture.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020. Several
pictures of a batch may have the same caption: all of them count as right (Khosla et al., arXiv 2004.11362).
"""

import json
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from .library import Library
from .loop import adamw, autocast, descend, rate_at, steps
from .settings import CLIP, TOKENS, WORK

__all__ = ["empty_prompt", "load_text", "normalised", "train"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHIFT = 8  # pixels, at most


def train(library: Library, total: int = CLIP.steps) -> dict[str, float]:
    """Train both towers and write them to WORK; returns what was measured on subjects that were held out."""
    torch.manual_seed(CLIP.seed)
    text, vision = (tower.to(library.device) for tower in _towers())
    temperature = torch.nn.Parameter(torch.tensor(math.log(CLIP.temperature), device=library.device))
    optimizer = adamw([*text.parameters(), *vision.parameters(), temperature], CLIP.rate, CLIP.weight_decay)
    embed = _compiled(text, vision)
    seen = library.select(held=False)
    for step, report in steps("CLIP", total):
        chosen = seen[torch.randint(len(seen), (min(CLIP.batch, len(seen)),), device=library.device)]
        tokens = _captions(library, chosen)
        with autocast(library.device):
            texts, pictures = embed(tokens, _moved(normalised(library.small[chosen])))
        loss = _contrast(texts, pictures, tokens, temperature.exp().clamp(min=CLIP.coldest))
        descend(loss, optimizer, CLIP.rate * rate_at(step, total, CLIP.warmup))
        report(loss)
    facts = _measure(library, text, vision) | {"temperature": temperature.exp().item(), "steps": total}
    text.save_pretrained(WORK / "text_encoder")
    vision.save_pretrained(WORK / "image_encoder")
    (WORK / "clip.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def load_text(device: torch.device) -> Any:
    """The trained text tower, frozen."""
    return CLIPTextModelWithProjection.from_pretrained(WORK / "text_encoder").to(device).requires_grad_(False)


def empty_prompt(device: torch.device) -> Tensor:
    """Token ids [77] of the empty prompt."""
    clip = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
    return torch.tensor(clip("", padding="max_length", max_length=TOKENS).input_ids, device=device)


def normalised(pictures: Tensor) -> Tensor:
    """uint8 [N, 3, S, S] as CLIP's vision tower sees it."""
    mean, std = (torch.tensor(values, device=pictures.device)[None, :, None, None] for values in (MEAN, STD))
    return (pictures.float() / 255 - mean) / std


def _towers() -> tuple[Any, Any]:
    clip = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
    ids = {"bos_token_id": clip.bos_token_id, "eos_token_id": clip.eos_token_id, "pad_token_id": clip.eos_token_id}
    text = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP.text, **ids))
    return text, CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP.vision))


def _compiled(text: Any, vision: Any) -> Any:
    def embed(tokens: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return text(input_ids=tokens).text_embeds, vision(pixel_values=pixels).image_embeds

    return torch.compile(embed) if text.device.type == "cuda" else embed


def _captions(library: Library, chosen: Tensor) -> Tensor:
    which = torch.randint(library.tokens.shape[1], chosen.shape, device=chosen.device)
    return library.tokens[chosen, which]


def _moved(pixels: Tensor) -> Tensor:
    """Shift all images of the batch by the same few pixels, and replicate their edges."""
    x, y = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    size = pixels.shape[-1]
    return F.pad(pixels, (SHIFT,) * 4, mode="replicate")[:, :, y : y + size, x : x + size]


def _contrast(texts: Tensor, pictures: Tensor, tokens: Tensor, temperature: Tensor) -> Tensor:
    """Symmetric cross entropy, in which all pairs that share a caption are positives."""
    logits = F.normalize(texts.float(), dim=-1) @ F.normalize(pictures.float(), dim=-1).T / temperature
    number = (tokens * torch.arange(1, TOKENS + 1, device=tokens.device) ** 3).sum(-1)  # one for each caption
    right = (number[:, None] == number[None]).float()
    right = right / right.sum(1, keepdim=True)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


@torch.no_grad()
def _measure(library: Library, text: Any, vision: Any) -> dict[str, float]:
    """On unseen subjects: how often the nearest caption is right, and how far the two towers' means are apart."""
    held = library.select(held=True)
    held = held[torch.tensor([library.pictures[i].is_single for i in held.tolist()], device=held.device)]
    pictures = F.normalize(vision(pixel_values=normalised(library.small[held])).image_embeds.float(), dim=-1)
    texts = F.normalize(text(input_ids=library.tokens[held, 4]).text_embeds.float(), dim=-1)
    nearest = (pictures @ texts.T).argmax(1)
    subjects = torch.tensor([library.pictures[i].subjects[0] for i in held.tolist()], device=held.device)
    style = library.style[held]
    return {
        "held_out_pictures": float(len(held)),
        "style_of_nearest_caption": (style[nearest] == style).float().mean().item(),
        "subject_of_nearest_caption": (subjects[nearest] == subjects).float().mean().item(),
        "gap": 1 - F.cosine_similarity(pictures.mean(0), texts.mean(0), dim=0).item(),
    }
