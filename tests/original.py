"""The original research code's personalisation, transcribed with plain transformers.

From the FrozenCLIPEmbedder of the fork of Stable Diffusion that came with arXiv 2209.12330, with the model given
instead of loaded from the disk for every prompt. Nothing of the package is used here.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel

from tests import snapshot


def load_clip(home: Path) -> CLIPModel:
    """A whole CLIP as the original code had it: its text tower is the one that Stable Diffusion uses."""
    model = CLIPModel.from_pretrained(home / "weights" / snapshot.CLIP, dtype=torch.float32)
    folder = home / "weights" / snapshot.MODEL / "text_encoder"
    tower = CLIPTextModel.from_pretrained(folder, variant="fp16", dtype=torch.float32)
    model.text_model.load_state_dict(tower.state_dict())
    return model.eval()


def conditioning(model: CLIPModel, tokens: Tensor, image_embs: Tensor, *, steps: int, lr: float) -> Tensor:
    """The conditioning [1, 77, hidden] of `tokens` personalised towards `image_embs`; changes `model`."""
    image_embs = image_embs / image_embs.norm(dim=-1, keepdim=True)
    text_embs = model.get_text_features(tokens).pooler_output
    text_embs = text_embs / text_embs.norm(dim=-1, keepdim=True)
    loss = -(text_embs @ image_embs.T)
    optimizer = torch.optim.Adam(model.text_model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        text_embs = model.get_text_features(tokens).pooler_output
        text_embs = text_embs / text_embs.norm(dim=-1, keepdim=True)
        loss = -(text_embs @ image_embs.T)
    z: Tensor = model.text_model(input_ids=tokens).last_hidden_state
    return z.detach()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative error."""
    return float((ours - theirs).norm() / theirs.norm())
