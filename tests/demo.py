"""Drawing with the model that comes with the checkout."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aesthetic.request import Request
from aesthetic.service import Service
from tests.snapshot import ROOT

FOLDER = ROOT / "weights" / "demo"
STEPS = 10  # towards an aesthetic


def asked(prompt: str, aesthetic: str | None = None) -> Request:
    """A request that takes a second or two, with 0 steps unless an aesthetic is given."""
    return Request(
        prompt=prompt,
        aesthetic_embedding=aesthetic,
        aesthetic_steps=STEPS if aesthetic else 0,
        num_inference_steps=12,
        scheduler="DPMSolverMultistep",
        seed=1,
    )


def draw(service: Service, request: Request) -> Image.Image:
    """The only image of a request."""
    [(picture, _)] = service.draw(request).images
    return picture


def features(service: Service, picture: Image.Image) -> Tensor:
    """The unit CLIP features [1, D] of an image."""
    vision = service.model.vision
    assert vision is not None
    return torch.nn.functional.normalize(vision.features([vision.prepare(picture)]))


def nearness(service: Service, picture: Image.Image, target: Tensor) -> float:
    """The cosine of an image and a direction [1, D]."""
    return (features(service, picture) @ target.T).item()


def saved(picture: Image.Image, path: Path) -> Path:
    """The path of a file with an image."""
    picture.save(path)
    return path
