"""A LoRA for the demo model, to show and to test what one does: it draws everything in the style of an aesthetic.

Some steps towards the aesthetic, for several prompts at once, change the text encoder. The LoRA keeps the largest
singular values of each matrix's change, nine tenths of it, under the names that diffusers gives them.
"""

from collections import deque

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from aesthetic.gradient import personalize

from .follow import RATE, load_text, tokenize
from .settings import DEMO, PROMPTS

__all__ = ["make"]

EMBEDDINGS = DEMO.parent.parent / "embeddings"
STEPS, RANK, SUBJECTS = 10, 8, 8


def make(aesthetic: str) -> bytes:
    """The file of the LoRA for an aesthetic of that name."""
    [target] = load_file(EMBEDDINGS / f"{aesthetic}.safetensors").values()
    moved = load_text()
    unit = nn.functional.normalize(target.reshape(1, -1))
    deque(personalize(moved, tokenize(PROMPTS[:SUBJECTS]), unit, steps=STEPS, lr=RATE), maxlen=0)
    before = dict(load_text().text_model.named_modules())
    tensors: dict[str, Tensor] = {}
    for name, layer in moved.text_model.named_modules():
        if isinstance(layer, nn.Linear):
            up, values, down = torch.linalg.svd((layer.weight - before[name].weight).detach())
            root = values[:RANK].sqrt()
            tensors[f"text_encoder.text_model.{name}.lora_A.weight"] = (root[:, None] * down[:RANK]).contiguous()
            tensors[f"text_encoder.text_model.{name}.lora_B.weight"] = (up[:, :RANK] * root).contiguous()
    return save(tensors)
