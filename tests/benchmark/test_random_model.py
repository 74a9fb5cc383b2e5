"""Models with random weights."""

from dataclasses import replace

import torch

from aesthetic.acceleration.fast_personalizer import supports
from aesthetic.acceleration.unet import Unet
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


def test_stable_diffusion_xl_has_as_many_weights_as_the_published_one() -> None:
    built = random_model.build("sdxl", torch.device("meta"))
    parts = {name: getattr(built.pipeline, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
    assert {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()} == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }
    assert built.is_xl
    assert built.encoder.text_model is parts["text_encoder"]
    assert not Unet.unknown(parts["unet"])
    assert supports(built.encoder)


def test_it_draws(quick: Request) -> None:
    service = Service(random_model.build("tiny", torch.device("cpu")), Registry(ROOT / "embeddings"))
    [(image, _)] = service.draw(replace(quick, aesthetic_steps=0)).images
    assert image.size == (128, 128)
