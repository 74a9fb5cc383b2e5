"""Start the denoising from an init image, and keep what its mask keeps.

diffusers' image-to-image pipeline draws. After each step, the latents outside of the mask are restored, as diffusers'
inpainting pipeline does for latents of four channels; for those, results are equal to the last bit.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images.init_image import HALF, InitImage
from ..models.loading import Model
from . import schedulers

__all__ = [
    "FromImage",
    "Img2ImgPipeline",
    "InitLatents",
    "OneDevice",
    "XLImg2ImgPipeline",
    "encode_init_image",
    "paste_kept_pixels",
    "run_vae",
]


@dataclass(frozen=True, kw_only=True)
class InitLatents:
    """An init image as the denoising takes it, f being the VAE's factor.

    latents: [1, channels, height / f, width / f], scaled as the UNet's are.
    mask:    [1, 1, height / f, width / f]: 1 is redrawn, 0 is kept; None redraws all.
    """

    init_image: InitImage
    latents: Tensor
    mask: Tensor | None


class OneDevice:
    """For pipelines without offloading: in search of its hooks, diffusers walks all modules, which takes 7 ms."""

    text_encoder: Any

    @property
    def _execution_device(self) -> torch.device:
        device: torch.device = self.text_encoder.device
        return device


class FromImage(OneDevice):
    """For diffusers' pipelines: our latents of the image, our noise (equal on every device) and our timesteps."""

    scheduler: Any

    def begin(self, start: InitLatents, noise: Tensor, steps: int) -> dict[str, Any]:
        """Set up one call; returns arguments for it. noise: [images, channels, height / f, width / f]; steps: ≥ 1."""
        self.start, self.noise, self.steps = start, noise, steps
        return {"image": start.init_image.image}

    def get_timesteps(self, num_inference_steps: int, *_: object, **__: object) -> tuple[Tensor, int]:
        """The timesteps of the last steps, and their number."""
        self.from_noise = self.steps == num_inference_steps
        self.timesteps = schedulers.skip_to_last(self.scheduler, self.steps)
        return self.timesteps, self.steps

    def prepare_latents(self, image: object, timestep: Tensor, *_: object) -> Tensor:
        """The latents to start from: noise alone if all steps are taken."""
        latents: Tensor = self.noise * self.scheduler.init_noise_sigma if self.from_noise else self._noisy(timestep)
        return latents

    def restore_kept_latents(self, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The latents with the kept ones restored, at the noise level of the next step; {} without a mask."""
        if self.start.mask is None:
            return {}
        later = self.timesteps[step + 1 :]
        kept = self._noisy(later[:1]) if len(later) else self.start.latents
        return {"latents": (1 - self.start.mask) * kept + self.start.mask * tensors["latents"]}

    def _noisy(self, timestep: Tensor) -> Tensor:
        latents = self.start.latents.expand_as(self.noise)
        noisy: Tensor = self.scheduler.add_noise(latents, self.noise, timestep)
        return noisy


class Img2ImgPipeline(FromImage, diffusers.StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
    """That of Stable Diffusion 1.x and 2.x."""


class XLImg2ImgPipeline(FromImage, diffusers.StableDiffusionXLImg2ImgPipeline):  # type: ignore[misc]
    """That of Stable Diffusion XL."""


def encode_init_image(model: Model, init: InitImage) -> InitLatents:
    """The latents of an init image: the mode of the VAE's posterior, which needs no noise."""
    vae, factor = model.pipeline.vae, model.pipeline.vae_scale_factor
    pixels = _pixels(init.image).to(model.device)
    mode = run_vae(vae, lambda vae, pixels: vae.encode(pixels).latent_dist.mode(), pixels).to(model.dtype)
    return InitLatents(init_image=init, latents=mode * vae.config.scaling_factor, mask=_by_latents(init, factor, mode))


@torch.no_grad()
def run_vae(vae: Any, run: Callable[[Any, Tensor], Tensor], inputs: Tensor) -> Tensor:
    """`run(vae, inputs)` in the VAE's precision; if the result is not finite, as fp16 may overflow, again in fp32."""
    result = run(vae, inputs.to(next(vae.parameters()).dtype))
    if result.isfinite().all():
        return result
    return run(copy.deepcopy(vae).float(), inputs.float())  # a copy: the prediction may be canceled here


def paste_kept_pixels(image: Tensor, init: InitImage) -> Tensor:
    """A decoded image [1, 3, height, width] with the pixels of the init image where the mask is black, in fp32.

    Gray mixes the two, as a soft edge. Without a mask, the image is returned unchanged.
    """
    if init.mask is None:
        return image
    new = torch.from_numpy(np.asarray(init.mask) / np.float32(255)).to(image.device)
    return torch.lerp(_pixels(init.image).to(image.device), image.float().clamp(-1, 1), new)


def _pixels(image: Image.Image) -> Tensor:
    """[1, 3, height, width] in -1..1."""
    return torch.from_numpy(np.asarray(image) / np.float32(127.5) - 1).permute(2, 0, 1)[None]


def _by_latents(init: InitImage, factor: int, like: Tensor) -> Tensor | None:
    """The mask at the size of the latents, 1 where any pixel is white, in the dtype of `like`."""
    if init.mask is None:
        return None
    white = torch.from_numpy(np.asarray(init.mask) >= HALF).to(like)
    return torch.nn.functional.max_pool2d(white[None, None], factor)
