"""Every sampler on the form."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline

from aesthetic import schedulers
from aesthetic.pipeline import Model
from aesthetic.request import SCHEDULERS, Request
from aesthetic.service import Service


def test_each_has_the_settings_of_the_model(model: Model) -> None:
    for name in SCHEDULERS:
        scheduler = schedulers.build(name, model.scheduler)
        assert scheduler.config.beta_end == 0.012
        assert scheduler.config.beta_schedule == "scaled_linear"


def test_karras_is_not_inherited(model: Model) -> None:
    assert schedulers.build("KarrasDPM", model.scheduler).config.use_karras_sigmas
    assert not schedulers.build("DPMSolverMultistep", model.scheduler).config.use_karras_sigmas
    assert "use_karras_sigmas" not in model.scheduler


def test_names_are_the_classes_that_people_expect(model: Model) -> None:
    assert isinstance(schedulers.build("PNDM", model.scheduler), PNDMScheduler)
    assert isinstance(schedulers.build("DDIM", model.scheduler), DDIMScheduler)
    assert isinstance(schedulers.build("DPMSolverMultistep", model.scheduler), DPMSolverMultistepScheduler)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_draws_what_plain_diffusers_draws(service: Service, name: str, steps: int) -> None:
    request = Request(
        prompt="the cat",
        aesthetic_steps=0,
        width=128,
        height=192,
        num_inference_steps=steps,
        scheduler=name,
        seed=3,
    )
    [(ours, _)] = service.draw(request).pictures
    model = service.model
    plain = StableDiffusionPipeline(
        **{**model.pipeline.components, "scheduler": schedulers.build(name, model.scheduler)}
    )
    theirs = plain(
        "the cat",
        width=128,
        height=192,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(3)],
    ).images[0]
    assert ours.tobytes() == theirs.tobytes()
