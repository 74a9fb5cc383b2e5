"""The stages of a prediction, each done by plain diffusers with the original's loop and by a service.

Inputs are prepared once, so that both ways get the same, and the work of a stage is counted for its floor.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..embeddings import embedding
from ..gradient import Step
from ..images import metadata
from ..models.loading import Model, in_precision
from ..personalizer import Personalizer
from ..pipeline import conditioning, prompt, sampling, schedulers
from ..request import Request
from ..service import Service
from . import roofline
from .baseline import Original, difference
from .roofline import Work

__all__ = ["PLAIN", "TEN", "Stages", "with_random_aesthetic"]

PLAIN = "plain diffusers"
TEN = "10 UNet steps"  # a part of the denoising, without the sampler
AESTHETIC = "aesthetic.safetensors"
Actions = Mapping[str, Callable[[], object]]


class Stages:
    """The stages of one request.

    ways: the ways to do each stage, by the names of stage and way.
    work: the least work of each stage whose work is known.
    """

    def __init__(self, model: Model, service: Service, request: Request, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.request = with_random_aesthetic(request, model, folder)
        self.target = embedding.load_aesthetic(folder / AESTHETIC).vector.to(model.device)
        self.tokens = prompt.tokenize_prompt(model.pipeline.tokenizer, request.prompt, model.device)
        vae, scheduler = model.pipeline.vae, schedulers.build(request.scheduler, model.scheduler)
        plain = {"vae": in_precision(vae, model.dtype), "scheduler": scheduler}
        self.original = Original(model.pipeline_of(type(model.pipeline), **plain), model.encoder, vae)
        # One drawing from end to end gives the inputs of each stage.
        _, [stop] = conditioning.condition(model, Personalizer(model.encoder), self.request, self.target)
        self.conditioning = stop.conditioning
        self.noise = sampling.starting_noise(model, self.request, sampling.generators(self.request))
        self.latents = sampling.denoise(model, self.conditioning, self.request)
        self.images = [image for image in sampling.decode(model, self.latents) if image is not None]
        self.drawn = service.draw(self.request).images
        ways = {PLAIN: self._plain(), service.speed: self._ours(service)}
        self.ways = {stage: {way: actions[stage] for way, actions in ways.items()} for stage in ways[PLAIN]}
        if model.safety_checker is None:
            del self.ways["safety check"]
        self.work = self._work()

    def _plain(self) -> Actions:
        """Each stage as plain diffusers does it."""
        step = self._step(self.request.num_outputs)
        return {
            "personalization": self._plain_personalization,
            TEN: lambda: self._unet(self.model, step),
            "denoising": self._plain_denoising,
            "decoding": lambda: self.original.decode(self.latents),
            "safety check": lambda: self.original.check(torch.cat(self.images)),
            "PNG": lambda: self.original.save([image for image, _ in self.drawn], self.folder),
            "whole": self._plain_whole,
        }

    def _ours(self, service: Service) -> Actions:
        """Each stage as the service does it."""
        step = self._step(self.request.num_outputs)
        return {
            "personalization": lambda: self._personalization(service.personalizer),
            TEN: lambda: self._unet(service.accelerated, step),
            "denoising": lambda: sampling.denoise(service.accelerated, self.conditioning, self.request),
            "decoding": lambda: self._decoding(service.accelerated),
            "safety check": lambda: self._check(service.accelerated),
            "PNG": lambda: list(sampling.WORKERS.map(metadata.encode, *zip(*self.drawn, strict=True))),
            "whole": lambda: self._whole(service),
        }

    def _plain_personalization(self) -> Tensor:
        steps, lr = self.request.aesthetic_steps, self.request.aesthetic_lr
        return self.original.personalize(self.tokens.input_ids, self.target, steps=steps, lr=lr)

    def _personalization(self, personalizer: Callable[..., Iterator[Step]], steps: int | None = None) -> Tensor:
        steps = self.request.aesthetic_steps if steps is None else steps
        run = personalizer(self.tokens.input_ids, self.target, steps=steps, lr=self.request.aesthetic_lr)
        [last] = deque(run, maxlen=1)
        return last.conditioning

    def _step(self, count: int) -> dict[str, Any]:
        """The UNet's inputs in a step of the denoising: with guidance, for twice as many images."""
        latents, given = self.noise[:count], self.conditioning.arguments
        ways = [""] if self.request.guidance_scale <= 1 else ["negative_", ""]

        def both(name: str) -> Tensor:
            return torch.cat([given[way + name].repeat_interleave(count, 0) for way in ways])

        step: dict[str, Any] = {
            "sample": latents.repeat(len(ways), 1, 1, 1),
            "timestep": torch.tensor(500, device=latents.device),
            "encoder_hidden_states": both("prompt_embeds"),
        }
        if self.model.is_xl:
            sizes = latents.new_tensor([self.request.height, self.request.width, 0, 0] * 2)[:6]
            added = {"text_embeds": both("pooled_prompt_embeds"), "time_ids": sizes.repeat(count * len(ways), 1)}
            step["added_cond_kwargs"] = added
        return step

    @torch.no_grad()
    def _unet(self, model: Model, step: Mapping[str, Any], steps: int = 10) -> None:
        for _ in range(steps):  # in a row, as in the denoising
            model.pipeline.unet(**step, return_dict=False)

    def _plain_denoising(self, embeds: Tensor | None = None, output_type: str = "latent") -> Any:
        request = self.request
        # Noise for ancestral samplers comes from the same generators, after the initial noise.
        sources = sampling.generators(request)
        given = self.conditioning
        if embeds is not None:
            given = replace(given, positive=embeds.to(given.positive.dtype))
        others = given.arguments if self.model.is_xl else {}
        return self.original.denoise(
            others.pop("prompt_embeds", given.positive),
            sampling.starting_noise(self.model, request, sources),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            width=request.width,
            height=request.height,
            generator=sources,
            output_type=output_type,
            **others,
        )

    def _decoding(self, model: Model) -> list[object]:
        images = sampling.decode(model, self.latents)
        return [sampling.to_pil(model, image) for image in images if image is not None]

    def _check(self, model: Model) -> list[bool]:
        return [sampling.is_unsafe(model, sampling.checker_pixels(model, image)) for image, _ in self.drawn]

    def _plain_whole(self) -> tuple[bytes, ...]:
        images = self._plain_denoising(self._plain_personalization(), "pil")
        self.original.save(images, self.folder)
        return tuple((self.folder / f"plain.{i}.png").read_bytes() for i in range(len(images)))

    def _whole(self, service: Service) -> tuple[bytes, ...]:
        paths, _ = service.predict(self.request, self.folder)
        return tuple(path.read_bytes() for path in paths)

    def differences(self, service: Service) -> dict[str, float]:
        """Relative differences between the results of a service and of plain diffusers."""
        latents = sampling.denoise(service.accelerated, self.conditioning, self.request)
        return {
            "conditioning": difference(self._personalization(service.personalizer), self._plain_personalization()),
            "latents": difference(latents.float(), self._plain_denoising().float()),
        }

    def _work(self) -> dict[str, Work]:
        """The work of each stage: operations, counted for one image, and bytes of weights, once for each use."""
        parts, count = self.model.pipeline, self.request.num_outputs

        def of(module: nn.Module, action: Callable[[], object]) -> Work:
            operations = count * roofline.operations(action)
            return Work(flops=operations, bytes=roofline.bytes_of(module), dtype=next(module.parameters()).dtype)

        unet = of(parts.unet, lambda: self._unet(self.model, self._step(1), 1))
        work = {
            "personalization": self._personalization_work(),
            TEN: unet.times(10),
            "denoising": unet.times(self._calls()),
            "decoding": of(parts.vae.decoder, lambda: self.original.decode(self.latents[:1])),
        }
        if self.model.safety_checker is not None:
            work["safety check"] = of(parts.safety_checker, lambda: self.original.check(self.images[0]))
        return work

    def _personalization_work(self) -> Work:
        """A step moves the weights ten times: forward, backward, gradients, and Adam reads four and writes three."""
        steps, tower = self.request.aesthetic_steps, self.model.encoder.text_model
        personalizer = Personalizer(self.model.encoder)
        forward = roofline.operations(lambda: self._personalization(personalizer, 0))
        step = roofline.operations(lambda: self._personalization(personalizer, 1)) - forward
        weights = roofline.bytes_of(tower) - roofline.bytes_of(tower.get_input_embeddings())
        return Work(
            flops=forward + steps * step,
            bytes=weights * (2 + 10 * steps + 1),  # the copy at the start (2) and the last forward pass (1)
            dtype=self.model.encoder.dtype,
        )

    def _calls(self) -> int:
        """The number of UNet calls in plain diffusers."""
        calls: list[object] = []
        hook = self.model.pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(None))
        try:
            self._plain_denoising()
        finally:
            hook.remove()
        return len(calls)


def with_random_aesthetic(request: Request, model: Model, folder: Path) -> Request:
    """`request` with a random aesthetic, which is written to `folder`."""
    dice = torch.Generator().manual_seed(0)
    vector = torch.nn.functional.normalize(torch.randn(1, model.dim, generator=dice))
    embedding.save_aesthetic(folder / AESTHETIC, vector, {})
    return replace(request, aesthetic_embedding_file=folder / AESTHETIC)
