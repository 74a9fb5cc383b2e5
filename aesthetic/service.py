"""A Request becomes images: the one file that knows all rooms.

    inputs → Request → aesthetic [1, D] → conditioning [1, 77 n, H] → latents → images → files

Bad input is refused on the way to the aesthetic, before the model works. No state passes from one prediction to the
next: weights are only read, and the copy that is trained is filled anew each time.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from . import settings
from .acceleration import modules
from .embeddings import embedding
from .embeddings.embedding import Aesthetic
from .embeddings.registry import Registry
from .errors import DrawingError
from .images import metadata
from .images.init_image import load_init_image
from .images.metadata import Recipe
from .images.sheet import contact_sheet, steps_label
from .models import checkpoint, loading
from .models.device import default_device
from .models.lora import apply_lora
from .personalizer import Personalizer
from .pipeline import img2img, sampling, target
from .pipeline.conditioning import PersonalizedConditioning, condition
from .pipeline.img2img import InitLatents
from .pipeline.sampling import WORKERS, Stopwatch
from .request import Request
from .writing import whole

__all__ = ["Result", "Service"]

log = logging.getLogger(__name__)
OnImage = Callable[[Image.Image, Recipe], object]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The images of a request, and what the API reports of them.

    request:    as it was drawn: with a seed, and in the size that an init image was fitted to.
    images:     those that passed the safety checker, each with its recipe.
    similarity: -1..1: cosine of prompt and aesthetic (as turned by aesthetic_text) before and after all steps,
                whatever the weight; None for the plain model.
    drift:      distance of the conditioning from the prompt's own, relative to the length of that.
    steps:      taken towards the aesthetic.
    stops:      steps, similarity and drift at each stop of a sweep; without one, after the last step.
    blocked:    how many images the safety checker blocked.
    seconds:    by stage; "encode" is the time spent on files after the last image was drawn.
    """

    request: Request
    images: list[tuple[Image.Image, Recipe]]
    similarity: tuple[float, float] | None
    drift: float
    steps: int
    stops: list[tuple[int, float | None, float]]
    blocked: int
    seconds: dict[str, float]

    @property
    def metrics(self) -> dict[str, float]:
        """The API's metrics by name."""
        assert self.request.seed is not None
        counts = {"seed": self.request.seed, "blocked": self.blocked, "steps": self.steps}
        measures = {"drift": self.drift}
        if self.similarity is not None:
            measures["similarity.before"], measures["similarity.after"] = self.similarity
        metrics = counts | {name: round(value, 4) for name, value in measures.items()}
        return metrics | {f"timing.{stage}": round(seconds, 3) for stage, seconds in self.seconds.items()}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A request, and what all of its images share."""

    request: Request
    aesthetic: Aesthetic | None
    stopwatch: Stopwatch
    init: InitLatents | None = None
    on_image: OnImage = lambda *_: None


class Service:
    """A loaded model and the named aesthetics, ready to draw one request at a time."""

    def __init__(
        self, model: loading.Model, registry: Registry, acceleration: modules.Accelerated | None = None
    ) -> None:
        """acceleration: faster stand-ins for parts of `model`, as `modules.accelerate` returns them."""
        self.model = model
        self.registry = registry
        self._acceleration = acceleration
        self.accelerated = model if acceleration is None else acceleration.wrap(model)
        self.personalizer = Personalizer(model.encoder) if acceleration is None else acceleration.personalizer(model)

    @classmethod
    def load(cls, model: str | None = None) -> Self:
        """Load `model` (see `checkpoint.locate`) and the index of aesthetics. Raises CheckpointError, SettingError."""
        device = default_device()
        speed, snapshot = settings.speed(device.type), checkpoint.locate(model)
        if snapshot.bundled and not (model or settings.model()):
            log.info(
                "Stable Diffusion has not been downloaded (%s does it): drawing with the small bundled model %s",
                *(settings.DOWNLOAD, snapshot.name),
            )
        with checkpoint.verified(snapshot):
            loaded = loading.load(snapshot, device)
        log.info(
            "Model: %s (revision %s) on %s, CLIP space %s, speed %s",
            *(snapshot.name, snapshot.revision, device, loaded.clip_space, speed),
        )
        if loaded.is_xl:
            log.info("Stable Diffusion XL has no safety checker: images are not checked")
        return cls(loaded, Registry(), modules.accelerate(loaded, speed))

    @property
    def speed(self) -> str:
        """One of settings.SPEEDS."""
        return "plain" if self._acceleration is None else "fast"

    def is_healthy(self) -> bool:
        """Whether the device, if idle, still computes. After some CUDA errors, every CUDA call of the process fails."""
        try:
            return bool((torch.ones(2, device=self.model.device).sum() == 2).item())
        except torch.OutOfMemoryError:  # temporary, unlike those errors
            return True
        except RuntimeError as error:
            log.error("The GPU fails, and so will every prediction, until the server is started anew: %s", error)  # noqa: TRY400
            return False

    def warm_up(self, request: Request) -> None:
        """Capture the graphs for images of this size and number, so that the first prediction is as fast as the next.

        Does nothing at speed plain. Raises DrawingError if the personalized conditioning is not finite.
        """
        if self._acceleration is None:
            return
        once = replace(request.seeded(), scheduler="DPMSolverMultistep", num_inference_steps=1, aesthetic_steps=1)
        _, [end] = condition(self.accelerated, self.personalizer, once, embedding.unit(torch.ones(1, self.model.dim)))
        list(self._images(_Job(request=once, aesthetic=None, stopwatch=Stopwatch(self.model.device)), end))

    def draw(self, request: Request, on_image: OnImage = lambda *_: None) -> Result:
        """Draw a request.

        on_image: called with each image as soon as it is decoded, before the safety checker sees it.

        Raises RequestError, EmbeddingError, ImageError or CheckpointError before the personalization, and DrawingError
        if that diverges or if all images are blocked or overflow.
        """
        request.require_size(is_xl=self.model.is_xl)
        request = request.seeded()
        log.info("Seed: %s", request.seed)
        init_image = load_init_image(request)
        if init_image is not None:
            width, height = init_image.image.size
            log.info("Size: %s × %s, fitted to the image", width, height)
            request = replace(request, width=width, height=height)
        stopwatch = Stopwatch(self.model.device)
        with_lora = self._with_lora(request, stopwatch)
        with stopwatch("aesthetic"):
            aesthetic, direction = self._target(request)
        with stopwatch("personalise"):
            start, stops = condition(with_lora.accelerated, with_lora.personalizer, request, direction)
        similarity = _similarity(request, aesthetic, start, stops[-1])
        init = None
        if init_image is not None:
            with stopwatch("image"):
                init = img2img.encode_init_image(self.model, init_image)
        job = _Job(request=request, aesthetic=aesthetic, stopwatch=stopwatch, init=init, on_image=on_image)
        samples = [sample for stop in stops for sample in with_lora._images(job, stop)]
        images = [(image, recipe) for image, recipe, is_unsafe in samples if not is_unsafe]
        _require_images(request, len(images), len(samples))
        return Result(
            request=request,
            images=images,
            similarity=similarity,
            drift=stops[-1].drift,
            steps=stops[-1].steps,
            stops=[(stop.steps, stop.similarity, stop.drift) for stop in stops],
            blocked=len(samples) - len(images),
            seconds=stopwatch.seconds,
        )

    def predict(self, request: Request, folder: Path) -> tuple[list[Path], Result]:
        """Draw, and write the images to `folder` as output.0.png, output.1.png, … in order.

        The last file of a sweep is a contact sheet. Raises what `draw` raises, and DrawingError where that is torch's
        OutOfMemoryError, whose message is for programmers.
        """
        encoded: dict[int, Future[bytes]] = {}

        def encode(image: Image.Image, recipe: Recipe) -> None:
            encoded[id(image)] = WORKERS.submit(metadata.encode, image, recipe)

        try:
            result = self.draw(request, encode)
        except torch.OutOfMemoryError as error:
            log.error("%s", error)  # noqa: TRY400
            raise DrawingError(
                f"the GPU's memory is full ({str(error).partition('.')[0]}): lower num_outputs, width or height, or "
                "try again once other programs leave it"
            ) from error
        files = [encoded[id(image)] for image, _ in result.images]
        if request.sweep:
            files.append(WORKERS.submit(_sheet, result))
        paths = [folder / f"output.{i}.{request.output_format}" for i in range(len(files))]
        stopwatch = Stopwatch(self.model.device)
        with stopwatch("encode"):
            for path, file in zip(paths, files, strict=True):
                with whole(path) as unfinished:
                    unfinished.write_bytes(file.result())
        return paths, replace(result, seconds=result.seconds | stopwatch.seconds)

    def draw_batches(self, request: Request, count: int) -> Iterator[tuple[int, list[tuple[Image.Image, Recipe]]]]:
        """For each stop of a sweep, its number of steps and `count` images (1..8), each of the next seed.

        One personalization serves all of them. The request's image and mask are not used. Blocked images are left out,
        and a stop may be left without images. Otherwise raises what `draw` raises.
        """
        request.require_size(is_xl=self.model.is_xl)
        stopwatch = Stopwatch(self.model.device)
        batch = replace(request.seeded(), aesthetic_sweep=None, num_outputs=count)
        with_lora = self._with_lora(request, stopwatch)
        aesthetic, direction = self._target(request)
        _, stops = condition(with_lora.accelerated, with_lora.personalizer, request, direction)
        job = _Job(request=batch, aesthetic=aesthetic, stopwatch=stopwatch)
        for stop in stops:
            images = with_lora._images(job, stop)
            yield stop.steps, [(image, recipe) for image, recipe, is_unsafe in images if not is_unsafe]

    def _with_lora(self, request: Request, stopwatch: Stopwatch) -> Self:
        """This service, or one for this prediction that draws with the request's LoRA.

        Aesthetics are not embedded with the latter: images and phrases go through the untouched CLIP.
        """
        if request.lora is None:
            return self
        with stopwatch("lora"):
            model = apply_lora(self.model, request.lora, request.lora_scale)
            return type(self)(model, self.registry, self._acceleration)

    def _target(self, request: Request) -> tuple[Aesthetic | None, Tensor | None]:
        """The aesthetic and its direction [1, D], turned by a phrase if there is one; None for the plain model."""
        aesthetic = target.requested_aesthetic(request, self.model, self.registry)
        return aesthetic, None if aesthetic is None else target.target_embedding(request, self.model, aesthetic)

    def _images(self, job: _Job, stop: PersonalizedConditioning) -> Iterator[tuple[Image.Image, Recipe, bool]]:
        """The images of a request at one stop, each with its recipe, and whether the safety checker blocks it."""
        recipes = [self._recipe(job, stop, index) for index in range(job.request.num_outputs)]

        def ready(index: int, image: Image.Image) -> None:
            job.on_image(image, recipes[index])

        inputs = (self.accelerated, stop.conditioning, job.request, job.init)
        for sample in sampling.sample(*inputs, stopwatch=job.stopwatch, ready=ready):
            yield sample.image, recipes[sample.index], sample.is_unsafe

    def _recipe(self, job: _Job, stop: PersonalizedConditioning, index: int) -> Recipe:
        """How to draw image `index` of a request at a stop, alone."""
        files = {} if job.init is None else job.init.init_image.files
        return Recipe.of(
            job.request.alone(index, stop.steps),
            model={
                "name": self.model.snapshot.name,
                "revision": self.model.snapshot.revision,
                "precision": str(self.model.dtype).removeprefix("torch."),
                "speed": self.speed,
            },
            aesthetic=job.aesthetic.provenance if job.aesthetic is not None and stop.steps else {},
            files=files if self.model.lora is None else {**files, "lora": self.model.lora},
        )


def _similarity(
    request: Request, aesthetic: Aesthetic | None, start: PersonalizedConditioning, end: PersonalizedConditioning
) -> tuple[float, float] | None:
    if aesthetic is None or start.similarity is None or end.similarity is None:
        return None
    log.info(
        "Similarity to %s: %.4f before, %.4f after %d steps; the conditioning moved by %.0f %%",
        *(aesthetic.name + (" (turned)" if request.aesthetic_text else ""), start.similarity, end.similarity),
        *(end.steps, 100 * end.drift),
    )
    return start.similarity, end.similarity


def _sheet(result: Result) -> bytes:
    """The contact sheet of a sweep, encoded."""
    labels = [steps_label(recipe.request["aesthetic_steps"]) for _, recipe in result.images]
    sheet = contact_sheet([[image for image, _ in result.images]], columns=labels)
    return metadata.encode_sheet(sheet, result.request)


def _require_images(request: Request, shown: int, decoded: int) -> None:
    if shown:
        return
    if decoded:
        raise DrawingError("the safety checker blocked every image: try another prompt or seed")
    raise DrawingError(
        "the denoising overflowed and left no image: try another seed or scheduler, a lower "
        "guidance_scale or a lower aesthetic_lr" + (", or a lower lora_scale" if request.lora else "")
    )
