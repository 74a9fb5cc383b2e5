"""A denoiser whose answers are known: the data are a Gaussian of mean MEAN and standard deviation STD in each value.

A latent at timestep t is x = a d + b e, of data d and noise e, with a² + b² = 1. Its score is known, so the ideal UNet
can be written down. Along the probability flow, (x - a MEAN) / sqrt(a² STD² + b²) is constant, so the end of an ideal
sampler can be written down, too: Song et al., "Score-Based Generative Modeling through SDEs",
https://arxiv.org/abs/2011.13456, section 4.3.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from diffusers import DDIMScheduler
from torch import Tensor, nn

from aesthetic.models.loading import Model

MEAN = 1.0
STD = 0.5


class Gaussian:
    """The data, as noisy as a scheduler's configuration makes them."""

    def __init__(self, config: Mapping[str, Any], std: float = STD) -> None:
        products = DDIMScheduler.from_config(dict(config)).alphas_cumprod.double()
        self._sigmas, self._std = ((1 - products) / products).sqrt().numpy(), std

    def levels(self, timestep: float | Tensor) -> tuple[float, float]:
        """The factors a and b at a timestep, which need not be whole."""
        sigma = float(np.interp(float(timestep), np.arange(len(self._sigmas)), self._sigmas))
        return 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5

    def noise(self, latents: Tensor, timestep: float | Tensor) -> Tensor:
        """What an ideal UNet finds in latents, fp64."""
        a, b = self.levels(timestep)
        shrinking = a * self._std**2 / ((a * self._std) ** 2 + b**2)
        data = MEAN + shrinking * (latents.double() - a * MEAN)
        return (latents.double() - a * data) / b

    def end(self, latents: Tensor, timestep: float | Tensor) -> Tensor:
        """Where the probability flow takes latents at a timestep."""
        a, b = self.levels(timestep)
        end: Tensor = MEAN + self._std * (latents.double() - a * MEAN) / ((a * self._std) ** 2 + b**2) ** 0.5
        return end


class IdealUnet(nn.Module):
    """Stands for the UNet of a pipeline; the words make no difference to it."""

    def __init__(self, unet: Any, data: Gaussian) -> None:
        super().__init__()
        self.config, self.dtype, self.device, self._data = unet.config, unet.dtype, unet.device, data

    def forward(self, sample: Tensor, timestep: Tensor, **_: object) -> tuple[Tensor]:
        """The noise in the sample, as a UNet returns it."""
        return (self._data.noise(sample, timestep).to(sample.dtype),)


def ideal(model: Model, std: float = STD) -> Model:
    """`model` with an ideal UNet."""
    unet = IdealUnet(model.pipeline.unet, Gaussian(model.scheduler, std))
    components = {**model.pipeline.components, "unet": unet}
    return replace(model, pipeline=type(model.pipeline)(**components, requires_safety_checker=False))
