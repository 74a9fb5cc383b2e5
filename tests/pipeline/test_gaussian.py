"""Every sampler, with every number of steps, against data whose samples are known in closed form."""

from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from aesthetic.images.init_image import InitImage
from aesthetic.models.loading import Model
from aesthetic.pipeline import img2img, prompt, sampling, schedulers
from aesthetic.request import SCHEDULERS, Request
from tests.pipeline.gaussian import MEAN, STD, Gaussian, ideal

MOST = 500  # steps that a request may ask for
SHARED = {"num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "stable-diffusion-v1-5": SHARED | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "demo": SHARED | {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
}
SPACINGS: tuple[Mapping[str, str], ...] = ({}, {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"})
FEW = (1, 2, 3, 4, 5, 7, 10, 20, 49, 50, 101)
MANY = (*FEW, 333, 334, 400, 500)
STRIDING = ("PNDM", "DDIM")
NOISE = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, -1, 1, 1)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    return CONFIGS[request.param]


def sampled(scheduler: Any, data: Gaussian, latents: Tensor, timesteps: Tensor) -> Tensor:
    """The result of diffusers' loop from latents with the noise of the first timestep."""
    is_random = isinstance(scheduler, diffusers.EulerAncestralDiscreteScheduler)
    options = {"generator": torch.Generator().manual_seed(1)} if is_random else {}
    for timestep in timesteps:
        noise = data.noise(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(noise, timestep, latents, **options)[0]
    return latents


def from_noise(scheduler: Any, data: Gaussian, steps: int, noise: Tensor = NOISE) -> Tensor:
    scheduler.set_timesteps(steps)
    return sampled(scheduler, data, noise * scheduler.init_noise_sigma, scheduler.timesteps)


def line(latents: Tensor) -> tuple[float, float]:
    """Of latents that NOISE ended in: the value of zero, and how far those of -2 and 2 are apart, divided by 4."""
    values = latents.flatten()
    return values[2].item(), (values[4] - values[0]).item() / 4


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "K_EULER_ANCESTRAL"])
def test_a_sampler_ends_where_the_data_are(config: Mapping[str, Any], name: str) -> None:
    data = Gaussian(config)
    center, spread = line(data.end(NOISE, 999))
    counts = FEW if name == "KLMS" else MANY  # scipy integrates each of its coefficients: 9 ms a step
    for steps in (count for count in counts if count >= SCHEDULERS[name].fewest_steps):
        found = line(from_noise(schedulers.build(name, config), data, steps))
        assert abs(found[0] - center) < 0.005 + 0.3 / steps, steps
        assert spread * (1 - 5 / steps) < found[1] < spread * 1.6, steps


def test_the_ancestral_sampler_ends_where_the_data_are(config: Mapping[str, Any]) -> None:
    noise = torch.randn(1, 10000, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for steps in (2, 5, 20, 50, 99):
        found = from_noise(schedulers.build("K_EULER_ANCESTRAL", config), Gaussian(config), steps, noise)
        assert abs(found.mean() - MEAN) < 0.02
        # 10,000 values have a standard deviation that is right to 0.7 %, and a mean to 1 % of it.
        assert STD * (0.97 - 8 / steps) < found.std() < STD * 1.1


@pytest.mark.parametrize("name", [name for name, one in SCHEDULERS.items() if one.fewest_steps > 1])
def test_too_few_steps_for_a_sampler_leave_noise(config: Mapping[str, Any], name: str) -> None:
    data = Gaussian(config)
    center, spread = line(data.end(NOISE, 999))
    for steps in range(1, SCHEDULERS[name].fewest_steps):
        found = line(from_noise(schedulers.build(name, config), data, steps))
        assert abs(found[0] - center) > 0.1 or found[1] > spread * 1.4


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_number_of_steps_begins_where_the_noise_is(
    config: Mapping[str, Any], name: str, spacing: Mapping[str, str]
) -> None:
    for steps in (count for count in MANY if count >= max(2, SCHEDULERS[name].fewest_steps)):
        scheduler = schedulers.build(name, {**config, **spacing})
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] >= 1000 - 1000 / steps


@pytest.mark.parametrize("name", STRIDING)
def test_the_timesteps_of_ddim_and_pndm(config: Mapping[str, Any], name: str) -> None:
    for steps in range(1, MOST + 1):
        scheduler = schedulers.build(name, config)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.unique().tolist() == [1000 * i // steps + 1 for i in range(steps)]
        assert len(scheduler.timesteps) == steps + (name == "PNDM" and steps > 1)


@pytest.mark.parametrize("spacing", [spacing for spacing in SPACINGS if spacing])
@pytest.mark.parametrize("name", STRIDING)
def test_steps_that_divide_the_training_are_diffusers_own(
    config: Mapping[str, Any], name: str, spacing: Mapping[str, str]
) -> None:
    data = Gaussian(config)
    kind, overrides = getattr(diffusers, SCHEDULERS[name].class_name), SCHEDULERS[name].config
    for steps in (2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500):
        plain = kind.from_config({**config, **spacing}, **overrides)
        assert torch.equal(
            from_noise(schedulers.build(name, {**config, **spacing}), data, steps), from_noise(plain, data, steps)
        )


def from_image(name: str, config: Mapping[str, Any], std: float, steps: int, last: int) -> tuple[Tensor, Tensor]:
    """The result of the last steps from a noisy image, and that of the probability flow."""
    scheduler, data = schedulers.build(name, config), Gaussian(config, std)
    scheduler.set_timesteps(steps)
    timesteps = schedulers.skip_to_last(scheduler, last)
    noisy = scheduler.add_noise(torch.full_like(NOISE, MEAN + std), NOISE, timesteps[:1])
    a, b = data.levels(timesteps[0])
    exact = data.end(a * (MEAN + std) + b * NOISE, timesteps[0])
    return sampled(scheduler, data, noisy, timesteps), exact


@pytest.mark.parametrize("name", SCHEDULERS)
def test_from_an_image_no_noise_is_left(config: Mapping[str, Any], name: str) -> None:
    a, b = Gaussian(config).levels(0)  # DDIM and PNDM end there
    for steps in (5, 20, 50, 334):
        for last in {1, 2, 3, 4, steps // 5, min(steps - 1, 49)}:
            found, _ = from_image(name, config, 0.0, steps, last)
            expected = a * MEAN + b * NOISE if name in STRIDING else torch.full_like(NOISE, MEAN)
            assert torch.allclose(found, expected, atol=1e-3), (steps, last)


@pytest.mark.parametrize("name", ["PNDM", "KLMS"])
def test_multistep_samplers_are_accurate_from_an_image_too(config: Mapping[str, Any], name: str) -> None:
    for steps, last, error in ((20, 4, 0.042), (50, 10, 0.005)):
        found, exact = from_image(name, config, STD, steps, last)
        assert (found - exact).abs().max() < error


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.34, 0.9])
def test_kept_latents_are_as_noisy_as_redrawn_ones(
    model: Model, name: str, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []
    restore = img2img.Img2ImgPipeline.restore_kept_latents

    def watched(
        self: img2img.Img2ImgPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        redrawn, found = tensors["latents"], restore(self, step, timestep, tensors)
        pairs.append((redrawn[..., :8], found["latents"][..., :8]))
        return found

    monkeypatch.setattr(img2img.Img2ImgPipeline, "restore_kept_latents", watched)
    request = Request(width=128, height=128, num_inference_steps=50, scheduler=name, prompt_strength=strength, seed=3)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    init = InitImage(image=Image.new("RGB", (128, 128)), mask=None, files={})
    start = img2img.InitLatents(init_image=init, latents=torch.full((1, 4, 16, 16), MEAN), mask=mask)
    words = prompt.tokenize_prompt(model.pipeline.tokenizer, "", model.device)
    conditioning = prompt.encode(model.pipeline.text_encoder, words, words, words)
    sampling.denoise(ideal(model, std=0.0), conditioning, request, start)
    assert len(pairs) >= request.img2img_steps
    for redrawn, kept in pairs[:-1]:
        if name == "K_EULER_ANCESTRAL":  # its noise is another one at each step
            assert ((redrawn - MEAN).std() - (kept - MEAN).std()).abs() < 0.1 * kept.std()
        else:
            error = 0.02 if name == "KarrasDPM" else 0.002  # KarrasDPM rounds the timesteps that the UNet is told
            assert torch.allclose(redrawn, kept, atol=error * max(1, kept.abs().max().item()))
