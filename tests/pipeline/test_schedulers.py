"""Every sampler of the form."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from aesthetic.models.loading import Model
from aesthetic.pipeline import schedulers
from aesthetic.request import SCHEDULERS, Request
from aesthetic.service import Service

# Repeated here, so that a wrong row of the table fails.
PLAIN: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "PNDM": (PNDMScheduler, {"skip_prk_steps": True}),
    "DDIM": (DDIMScheduler, {}),
    "DPMSolverMultistep": (DPMSolverMultistepScheduler, {}),
    "K_EULER": (EulerDiscreteScheduler, {}),
    "K_EULER_ANCESTRAL": (EulerAncestralDiscreteScheduler, {}),
    "KLMS": (LMSDiscreteScheduler, {}),
    "HeunDiscrete": (HeunDiscreteScheduler, {}),
    "KarrasDPM": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
}


def test_each_has_the_settings_of_the_model(model: Model) -> None:
    for name in SCHEDULERS:
        scheduler = schedulers.build(name, model.scheduler)
        assert scheduler.config.beta_end == 0.012
        assert scheduler.config.beta_schedule == "scaled_linear"


def test_karras_is_not_inherited(model: Model) -> None:
    assert schedulers.build("KarrasDPM", model.scheduler).config.use_karras_sigmas
    assert not schedulers.build("DPMSolverMultistep", model.scheduler).config.use_karras_sigmas
    assert "use_karras_sigmas" not in model.scheduler


def test_pndm_is_plms_whatever_the_model_came_with(model: Model) -> None:
    ddim = dict(DDIMScheduler.from_config(model.scheduler).config)
    del ddim["skip_prk_steps"]
    scheduler = schedulers.build("PNDM", ddim)
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == 11


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, steps) for name, one in SCHEDULERS.items() for steps in sorted({one.fewest_steps, 5})],
)
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
    [(ours, _)] = service.draw(request).images
    model = service.model
    kind, settings = PLAIN[name]
    plain = StableDiffusionPipeline(
        **{**model.pipeline.components, "scheduler": kind.from_config(model.scheduler, **settings)}
    )
    theirs = plain(
        "the cat",
        width=128,
        height=192,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(3)],
    ).images[0]
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(("name", "eta"), [("K_EULER_ANCESTRAL", 0.0), ("DDIM", 1.0)])
def test_noise_added_at_each_step_is_the_same_in_every_precision(model: Model, name: str, eta: float) -> None:
    def step(dtype: torch.dtype) -> torch.Tensor:
        scheduler = schedulers.build(name, model.scheduler, eta=eta)
        scheduler.set_timesteps(10)
        zeros = torch.zeros(1, 4, 16, 16, dtype=dtype)
        options = {"eta": eta} if eta else {}
        source = [torch.Generator().manual_seed(1)]
        previous: torch.Tensor = scheduler.step(zeros, scheduler.timesteps[0], zeros, generator=source, **options)[0]
        assert previous.dtype == dtype
        return previous

    assert step(torch.float32).std() > 0.1
    assert torch.equal(step(torch.float16), step(torch.float32).half())


def test_the_eta_of_a_request_reaches_its_scheduler(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    etas: list[float] = []
    build = schedulers.build

    def recording(name: str, config: Mapping[str, Any], *, eta: float) -> Any:
        etas.append(eta)
        return build(name, config, eta=eta)

    monkeypatch.setattr(schedulers, "build", recording)
    service.draw(
        Request(width=128, height=128, num_inference_steps=2, aesthetic_steps=0, scheduler="DDIM", ddim_eta=0.5)
    )
    assert etas == [0.5]
