"""Models with random weights."""

from dataclasses import replace

import torch

from aesthetic.benchmark import random_model
from aesthetic.embeddings.registry import Registry
from aesthetic.models.loading import Model
from aesthetic.request import Request
from aesthetic.service import Service
from tests.snapshot import ROOT


def shapes_of(model: Model) -> dict[str, dict[str, torch.Size]]:
    return {
        name: {key: weight.shape for key, weight in module.state_dict().items()}
        for name, module in {**model.pipeline.components, "encoder": model.encoder}.items()
        if isinstance(module, torch.nn.Module)
    }


def test_the_tiny_model_is_built_as_it_would_be_loaded(model: Model) -> None:
    built = random_model.build("tiny", torch.device("cpu"))
    assert shapes_of(built) == shapes_of(model)
    assert built.scheduler == {name: model.scheduler[name] for name in built.scheduler}
    assert built.encoder.text_model is built.pipeline.text_encoder
    assert built.pipeline.tokenizer("the cat").input_ids == model.pipeline.tokenizer("the cat").input_ids
    for module in (built.encoder, built.pipeline.unet, built.pipeline.vae, built.pipeline.safety_checker):
        assert not module.training
        assert not any(weight.requires_grad for weight in module.parameters())


def test_it_draws(quick: Request) -> None:
    service = Service(random_model.build("tiny", torch.device("cpu")), Registry(ROOT / "embeddings"))
    [(image, _)] = service.draw(replace(quick, aesthetic_steps=0)).images
    assert image.size == (128, 128)
