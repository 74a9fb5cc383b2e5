"""A canvas becomes where the denoising starts, and what the mask keeps is put back.

A picture without a mask is one whose mask is all white: diffusers' inpainting, which puts the latents outside of the
mask back after each step, then does to the last bit what its image-to-image does, and at full strength what it draws
from words alone.
"""

import copy
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .canvas import HALF, Canvas
from .pipeline import Model

__all__ = ["Redrawing", "Start", "encode", "put_back"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """latents: [1, channels, height / f, width / f], scaled; mask: in pixels, each latent's all black or all white."""

    canvas: Canvas
    latents: Tensor
    mask: Image.Image


class Redrawing(diffusers.StableDiffusionInpaintPipeline):  # type: ignore[misc]
    """diffusers' own, but that `latents` are the noise at any strength: its own is not the same on every device."""

    def prepare_latents(self, *shape: Any, timestep: Tensor, is_strength_max: bool, **options: Any) -> Any:
        """Where to start, the noise, and the picture's latents."""
        start, noise, picture = super().prepare_latents(
            *shape, timestep=timestep, is_strength_max=is_strength_max, **options
        )
        return start if is_strength_max else self.scheduler.add_noise(picture, noise, timestep), noise, picture


def encode(model: Model, canvas: Canvas) -> Start:
    """The canvas as the model sees it: the mode of the VAE's posterior, so that it takes no noise."""
    vae, factor = model.pipeline.vae, model.pipeline.vae_scale_factor
    pixels = _pixels(canvas.image).to(model.device)
    with torch.no_grad():
        mode = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        if not mode.isfinite().all():  # fp16 can overflow, as in sample.decode
            mode = copy.deepcopy(vae).float().encode(pixels).latent_dist.mode().to(vae.dtype)
    return Start(canvas=canvas, latents=mode * vae.config.scaling_factor, mask=_by_latents(canvas, factor))


def put_back(image: Tensor, canvas: Canvas) -> Tensor:
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


def _by_latents(canvas: Canvas, factor: int) -> Image.Image:
    """The mask with every latent white that has a white pixel: diffusers looks at one pixel of each."""
    if canvas.mask is None:
        return Image.new("L", canvas.image.size, "white")
    white = np.asarray(canvas.mask) >= HALF
    height, width = white.shape
    latents = white.reshape(height // factor, factor, width // factor, factor).any(axis=(1, 3))
    return Image.fromarray(np.kron(latents, np.ones((factor, factor), bool)).astype(np.uint8) * 255)
