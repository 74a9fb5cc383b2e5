"""Conditioning and a Request become images: noise, denoising, decoding, the safety checker.

Sampling is the same with and without personalization: the conditioning is just a tensor. The model is not changed;
each prediction gets a scheduler of its own.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..cancellation import check
from ..models.loading import Model
from ..request import Request
from . import img2img, schedulers
from .prompt import Conditioning

__all__ = [
    "WORKERS",
    "Sample",
    "Stopwatch",
    "checker_pixels",
    "decode",
    "denoise",
    "generators",
    "is_unsafe",
    "sample",
    "starting_noise",
    "to_pil",
]


log = logging.getLogger(__name__)
WORKERS = ThreadPoolExecutor(16)  # for the safety checker's inputs and the files of 8 images


class Stopwatch:
    """Adds up the seconds of each stage. `seconds` maps the stages' names to them, in order."""

    def __init__(self, device: torch.device) -> None:
        """device: where the work is done; CUDA works asynchronously, so a stage ends with a synchronization."""
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of a with statement, unless it raises."""
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class Txt2ImgPipeline(img2img.OneDevice, diffusers.StableDiffusionPipeline):  # type: ignore[misc]
    """diffusers' pipeline, which the service never offloads."""


class XLTxt2ImgPipeline(img2img.OneDevice, diffusers.StableDiffusionXLPipeline):  # type: ignore[misc]
    """The same of Stable Diffusion XL."""


# Text to image, and image to image; for Stable Diffusion XL or not.
PIPELINES: Mapping[bool, tuple[Any, Any]] = {
    False: (Txt2ImgPipeline, img2img.Img2ImgPipeline),
    True: (XLTxt2ImgPipeline, img2img.XLImg2ImgPipeline),
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image, its place in the batch, and whether the safety checker blocks it."""

    index: int
    image: Image.Image
    is_unsafe: bool


def sample(
    model: Model,
    conditioning: Conditioning,
    request: Request,
    init: img2img.InitLatents | None = None,
    *,
    stopwatch: Stopwatch,
    ready: Callable[[int, Image.Image], object],
) -> Iterator[Sample]:
    """Denoise, decode and check the images of a request; an image that overflows is left out.

    ready: called with index and image as soon as it is decoded. The safety checker's input is prepared in a thread
           while the next image is being decoded.
    """
    with stopwatch("denoise"):
        latents = denoise(model, conditioning, request, init)
    is_checked = not request.disable_safety_checker and model.safety_checker is not None
    decoded: list[tuple[int, Image.Image, Future[Tensor] | None]] = []
    for index, image in _images(model, latents, init, stopwatch):
        ready(index, image)
        decoded.append((index, image, WORKERS.submit(checker_pixels, model, image) if is_checked else None))
    for index, image, pixels in decoded:
        with stopwatch("safety"):
            unsafe = pixels is not None and is_unsafe(model, pixels.result())
        if unsafe:
            log.warning("The safety checker blocked image %d", index)
        yield Sample(index=index, image=image, is_unsafe=unsafe)


def _images(
    model: Model, latents: Tensor, init: img2img.InitLatents | None, stopwatch: Stopwatch
) -> Iterator[tuple[int, Image.Image]]:
    """Place in the batch and image of all latents that give a finite image."""
    decoded = decode(model, latents)
    for index in range(len(latents)):
        check()
        with stopwatch("decode"):
            pixels = next(decoded)
            if pixels is not None and init is not None:
                pixels = img2img.paste_kept_pixels(pixels, init.init_image)
            image = None if pixels is None else to_pil(model, pixels)
        if image is None:
            log.warning("Image %d overflowed and is left out", index)
        else:
            yield index, image


def generators(request: Request) -> list[torch.Generator]:
    """One source of noise for each image, seeded with seed + i, on the CPU: the same on every device."""
    assert request.seed is not None
    return [torch.Generator().manual_seed(request.seed + i) for i in range(request.num_outputs)]


def starting_noise(model: Model, request: Request, sources: Sequence[torch.Generator]) -> Tensor:
    """The noise of each image, [n, channels, height / f, width / f], as diffusers draws it from these generators.

    f is the VAE's factor.
    """
    factor = model.pipeline.vae_scale_factor
    shape = (1, model.pipeline.unet.config.in_channels, request.height // factor, request.width // factor)
    noise = torch.cat([torch.randn(shape, generator=source) for source in sources])
    return noise.to(device=model.device, dtype=model.dtype)


def denoise(
    model: Model, conditioning: Conditioning, request: Request, init: img2img.InitLatents | None = None
) -> Tensor:
    """The images as latents [num_outputs, channels, height / f, width / f].

    A GPU denoises all images in one batch. A CPU denoises them one by one, so that each equals, to the last bit, the
    image that its seed gives alone.
    """
    sources = generators(request)
    together = len(sources) if model.device.type == "cuda" else 1
    parts = [sources[i : i + together] for i in range(0, len(sources), together)]
    latents = []
    for i, part in enumerate(parts, start=1):
        title = "Denoising" if len(parts) == 1 else f"Denoising {i} of {len(parts)}"
        latents.append(_denoise(model, conditioning, request, init, part, title))
    return torch.cat(latents)


def _denoise(
    model: Model,
    conditioning: Conditioning,
    request: Request,
    init: img2img.InitLatents | None,
    sources: Sequence[torch.Generator],
    title: str,
) -> Tensor:
    """The latents of one batch, which has one source of noise for each image."""
    scheduler = schedulers.on_cpu(schedulers.build(request.scheduler, model.scheduler, eta=request.ddim_eta))
    noise = starting_noise(model, request, sources)
    pipeline = model.pipeline_of(PIPELINES[model.is_xl][init is not None], scheduler=scheduler)
    if init is not None:
        given = pipeline.begin(init, noise, request.img2img_steps)
    else:
        given = {"latents": noise, "width": request.width, "height": request.height}
    # diffusers passes `disable` to tqdm, which then ignores the environment.
    pipeline.set_progress_bar_config(desc=title, disable=bool(os.environ.get("TQDM_DISABLE")))
    latents: Tensor = pipeline(
        **conditioning.arguments,
        num_images_per_prompt=len(sources),
        generator=list(sources),
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        eta=request.ddim_eta,
        output_type="latent",
        callback_on_step_end=_after_step,
        **given,
    ).images
    return latents


def _after_step(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The callback that diffusers calls after each step. The returned tensors replace the pipeline's."""
    check()
    if isinstance(pipeline, img2img.FromImage):
        return pipeline.restore_kept_latents(step, timestep, tensors)
    return {}


def decode(model: Model, latents: Tensor) -> Iterator[Tensor | None]:
    """Each image [1, 3, height, width], nominally in -1..1, one at a time, since the decoder needs much memory.

    None stands for an image that is not finite in fp32 either, as when its latents have overflowed.
    """
    vae = model.pipeline.vae
    for latent in (latents / vae.config.scaling_factor).split(1):
        image = img2img.run_vae(vae, lambda vae, latent: vae.decode(latent, return_dict=False)[0], latent)
        yield image if image.isfinite().all() else None


def to_pil(model: Model, image: Tensor) -> Image.Image:
    """A decoded image [1, 3, height, width] in 8 bits, equal to that of diffusers' image processor.

    Rounded on its device, so that less has to be copied to the CPU.
    """
    [unit] = model.pipeline.image_processor.denormalize(image)
    pixels = (unit.float() * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def checker_pixels(model: Model, image: Image.Image) -> Tensor:
    """An image as the safety checker's input, [1, 3, size, size] in fp32 on the CPU. Safe in any thread."""
    pixels: Tensor = model.pipeline.feature_extractor(image, return_tensors="pt").pixel_values
    return pixels


def is_unsafe(model: Model, pixels: Tensor) -> bool:
    """Whether the safety checker, which the model must have, blocks an image: diffusers' run_safety_checker."""
    pixels = pixels.to(model.device, model.dtype)
    blackened = np.zeros((1, 1))  # stands in for the image, which the checker would overwrite
    _, [flag] = model.pipeline.safety_checker(images=blackened, clip_input=pixels)
    return bool(flag)
