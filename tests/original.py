"""The CLIP that the original research code would use with a home's model."""

from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTextModel

from aesthetic.benchmark.baseline import conditioning, difference
from tests import snapshot

__all__ = ["conditioning", "difference", "load_clip"]


def load_clip(home: Path) -> CLIPModel:
    """A whole CLIP as the original code had it: its text tower is the one that Stable Diffusion uses."""
    model = CLIPModel.from_pretrained(home / "weights" / snapshot.CLIP, dtype=torch.float32)
    folder = home / "weights" / snapshot.MODEL / "text_encoder"
    tower = CLIPTextModel.from_pretrained(folder, variant="fp16", dtype=torch.float32)
    model.text_model.load_state_dict(tower.state_dict())
    return model.eval()
