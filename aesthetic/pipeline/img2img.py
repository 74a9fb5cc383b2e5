"""A canvas becomes where the denoising starts, and what the mask keeps is put back.

diffusers' image to image draws, and after each step the latents outside of the mask are put back, as in diffusers'
inpainting, which itself takes no latents but those of four channels. Where it does, this is the same to the last bit.
"""

import copy
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

__all__ = ["Img2ImgPipeline", "InitLatents", "encode_init_image", "paste_kept_pixels"]


@dataclass(frozen=True, kw_only=True)
class InitLatents:
    """latents: [1, channels, height / f, width / f], scaled; mask: [1, 1, height / f, width / f], 1 is redrawn."""

    canvas: InitImage
    latents: Tensor
    mask: Tensor | None


class Img2ImgPipeline(diffusers.StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
    """diffusers' own, but that it is given the image's latents, the noise, the same on every device, and the steps."""

    def begin(self, start: InitLatents, noise: Tensor, steps: int) -> dict[str, Any]:
        """Arguments of the call. noise: [images, channels, height / f, width / f]; steps: to take, 1 or more."""
        self.start, self.noise, self.steps = start, noise, steps
        return {"image": start.canvas.image}

    def get_timesteps(self, num_inference_steps: int, *_: object) -> tuple[Tensor, int]:
        """The timesteps of the last steps, and how many steps these are."""
        self.from_noise = self.steps == num_inference_steps
        self.timesteps = schedulers.skip_to_last(self.scheduler, self.steps)
        return self.timesteps, self.steps

    def prepare_latents(self, image: object, timestep: Tensor, *_: object) -> Tensor:
        """Where to start: with all steps to take, where the words alone would."""
        latents: Tensor = self.noise * self.scheduler.init_noise_sigma if self.from_noise else self._noisy(timestep)
        return latents

    def restore_kept_latents(self, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put back what is not redrawn, as noisy as the step after this one will take it. Without a mask, nothing."""
        if self.start.mask is None:
            return {}
        later = self.timesteps[step + 1 :]
        kept = self._noisy(later[:1]) if len(later) else self.start.latents
        return {"latents": (1 - self.start.mask) * kept + self.start.mask * tensors["latents"]}

    def _noisy(self, timestep: Tensor) -> Tensor:
        latents = self.start.latents.expand_as(self.noise)
        noisy: Tensor = self.scheduler.add_noise(latents, self.noise, timestep)
        return noisy


def encode_init_image(model: Model, canvas: InitImage) -> InitLatents:
    """The canvas as the model sees it: the mode of the VAE's posterior, so that it takes no noise."""
    vae, factor = model.pipeline.vae, model.pipeline.vae_scale_factor
    pixels = _pixels(canvas.image).to(model.device)
    with torch.no_grad():
        mode = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        if not mode.isfinite().all():  # fp16 can overflow, as in sample.decode
            mode = copy.deepcopy(vae).float().encode(pixels).latent_dist.mode().to(vae.dtype)
    return InitLatents(canvas=canvas, latents=mode * vae.config.scaling_factor, mask=_by_latents(canvas, factor, mode))


def paste_kept_pixels(image: Tensor, canvas: InitImage) -> Tensor:
    """A decoded picture [1, 3, height, width] with the canvas's own pixels where the mask is black, in fp32.

    Grey mixes the two, as a soft edge. Without a mask the picture stays as it is.
    """
    if canvas.mask is None:
        return image
    new = torch.from_numpy(np.asarray(canvas.mask) / np.float32(255)).to(image.device)
    return torch.lerp(_pixels(canvas.image).to(image.device), image.float().clamp(-1, 1), new)


def _pixels(image: Image.Image) -> Tensor:
    """[1, 3, height, width] in -1..1."""
    return torch.from_numpy(np.asarray(image) / np.float32(127.5) - 1).permute(2, 0, 1)[None]


def _by_latents(canvas: InitImage, factor: int, like: Tensor) -> Tensor | None:
    """The mask with every latent white that has a white pixel, of the type of `like`."""
    if canvas.mask is None:
        return None
    white = torch.from_numpy(np.asarray(canvas.mask) >= HALF).to(like)
    return torch.nn.functional.max_pool2d(white[None, None], factor)
