"""A Request becomes pictures: the one file that brings all the others together.

    request -> aesthetic [1, D] -> conditioning [1, 77 n, H] -> latents -> pictures -> files

Whatever can be refused is refused on the way to the aesthetic, before the model works. No prediction leaves
anything for the next one: weights are only read, and the one copy that moves is filled anew each time.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from . import __version__, settings
from .acceleration import accelerate, modules
from .cancellation import check
from .embeddings import embedding
from .embeddings.embedding import Aesthetic
from .embeddings.registry import Registry
from .errors import DrawingError
from .images import metadata
from .images.init_image import InitImage, load_init_image
from .images.sheet import contact_sheet, steps_label
from .models import checkpoint, loading
from .models.device import default_device
from .models.lora import apply_lora
from .personalizer import Personalizer
from .pipeline import img2img, sampling, target
from .pipeline.conditioning import PersonalizedConditioning, condition
from .request import Request

__all__ = ["WORKERS", "Result", "Service", "locate"]

log = logging.getLogger(__name__)
# For what the model need not wait for: the files of eight pictures, and what the safety checker looks at.
WORKERS = ThreadPoolExecutor(16)
Picture = tuple[Image.Image, metadata.Recipe]


def _ignore(image: Image.Image, recipe: metadata.Recipe) -> None:
    """What becomes of a picture that nobody waits for."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a request.

    request:    as it was drawn: with a seed, and in the size that an image was fitted to.
    pictures:   those that may be shown, each with its recipe.
    similarity: cosine of prompt and aesthetic (turned, if a phrase turned it), before and after all steps, whatever
                the weight; None if the model drew without one.
    drift:      how far the conditioning moved from the prompt's own, relative to its length.
    steps:      taken towards the aesthetic.
    blocked:    pictures that the safety checker kept back.
    seconds:    by stage; "encode" is what writing takes beyond the drawing.
    """

    request: Request
    pictures: list[Picture]
    similarity: tuple[float, float] | None
    drift: float
    steps: int
    blocked: int
    seconds: dict[str, float]


class Service:
    """A loaded model and the named aesthetics, ready to draw one request at a time."""

    def __init__(self, model: loading.Model, registry: Registry, faster: modules.Accelerated | None = None) -> None:
        """faster: how to draw with `model` other than as it is."""
        self.model = model
        self.registry = registry
        self._faster = faster
        self.drawn, self.personalizer = faster.wrap(model) if faster else (model, Personalizer(model.encoder))
        libraries = ("torch", "diffusers", "transformers")
        self._versions = {"aesthetic": __version__, **{library: version(library) for library in libraries}}

    @classmethod
    def load(cls, model: str | None = None) -> Self:
        """Load `model` (see `locate`) and the index of aesthetics. Raises CheckpointError and SettingError."""
        device = default_device()
        speed, snapshot = settings.speed(device.type), locate(model)
        code = WORKERS.submit(accelerate.code, speed)
        loaded = loading.load(snapshot, device)
        log.info(
            "Model: %s (revision %s) on %s, CLIP space %s, speed %s",
            *(snapshot.name, snapshot.revision, device, loaded.clip_space, speed),
        )
        return cls(loaded, Registry(settings.home() / "embeddings"), accelerate.choose(loaded, speed, code.result()))

    def is_healthy(self) -> bool:
        """Whether the device still computes. After some CUDA errors nothing works any more in this process."""
        try:
            return bool((torch.ones(2, device=self.model.device).sum() == 2).item())
        except RuntimeError as error:
            log.error("The GPU fails, and so will every prediction, until the server is started anew: %s", error)  # noqa: TRY400
            return False

    def warm_up(self, request: Request) -> None:
        """Record what pictures of such a size and number are drawn with, so that the first take no longer than others.

        Where nothing is recorded, there is nothing to do. Raises DrawingError if the model is no good.
        """
        if self._faster is None:
            return
        once = replace(request.seeded(), scheduler="DPMSolverMultistep", num_inference_steps=1, aesthetic_steps=1)
        _, [stop] = condition(self.drawn, self.personalizer, once, embedding.unit(torch.ones(1, self.model.dim)))
        for _ in self._draw_stop(once, None, stop, {}):
            pass

    def draw(self, request: Request) -> Result:
        """Draw what is asked for.

        Raises RequestError, EmbeddingError, ImageError or CheckpointError before anything is personalised or drawn,
        and DrawingError if nothing is left to show.
        """
        return self._draw(request)

    def _draw(self, request: Request, ready: Callable[[Image.Image, metadata.Recipe], object] = _ignore) -> Result:
        """`ready` is called with each picture as soon as it is there, before the safety checker has seen it."""
        request = request.seeded()
        log.info("Seed: %s", request.seed)
        seconds: dict[str, float] = {}
        init_image = load_init_image(request)
        if init_image is not None:
            width, height = init_image.image.size
            request = replace(request, width=width, height=height)
            log.info("Size: %s × %s, fitted to the image", width, height)
        with_lora = self._with_lora(request, seconds)
        with self._timed(seconds, "aesthetic"):
            aesthetic, target = self._aim(request)
        with self._timed(seconds, "personalise"):
            before, stops = condition(with_lora.drawn, with_lora.personalizer, request, target)
        end, similarity = stops[-1], None
        if aesthetic is not None and before.similarity is not None and end.similarity is not None:
            similarity = (before.similarity, end.similarity)
            log.info(
                "Similarity to %s: %.4f before, %.4f after %d steps; the conditioning moved by %.0f %%",
                *(aesthetic.name + (" (turned)" if request.aesthetic_text else ""), *similarity),
                *(end.steps, 100 * end.drift),
            )
        pictures, blocked, start = [], 0, None
        if init_image is not None:
            with self._timed(seconds, "image"):
                start = img2img.encode_init_image(self.model, init_image)
        for stop in stops:
            for picture, unsafe in with_lora._draw_stop(request, aesthetic, stop, seconds, start, ready):
                blocked += unsafe
                if not unsafe:
                    pictures.append(picture)
        _require_some(request, pictures, blocked)
        return Result(
            request=request,
            pictures=pictures,
            similarity=similarity,
            drift=end.drift,
            steps=end.steps,
            blocked=blocked,
            seconds=seconds,
        )

    def predict(self, request: Request, folder: Path) -> tuple[list[Path], Result]:
        """Draw, and write the pictures to `folder` as output.0.png, output.1.png, … in order. Raises as `draw`.

        Of a sweep, the last one is a sheet of all the others.
        """
        encoded: dict[int, Future[bytes]] = {}

        def encode(image: Image.Image, recipe: metadata.Recipe) -> None:
            encoded[id(image)] = WORKERS.submit(metadata.encode, image, recipe)

        drawing = self._draw(request, encode)
        files = [encoded[id(image)] for image, _ in drawing.pictures]
        if request.sweep:
            files.append(WORKERS.submit(_sheet, drawing))
        paths = [folder / f"output.{i}.{request.output_format}" for i in range(len(files))]
        with self._timed(drawing.seconds, "encode"):
            for path, file in zip(paths, files, strict=True):
                path.write_bytes(file.result())
        return paths, drawing

    def draw_batches(self, request: Request, count: int) -> Iterator[tuple[int, list[Picture]]]:
        """At each stop of a sweep, its number of steps and `count` pictures (1..8) of as many seeds.

        One personalisation serves all of them. Pictures that may not be shown are left out. Raises as `draw`, but for
        a stop of which nothing is left.
        """
        batch = replace(request.seeded(), aesthetic_sweep=None, num_outputs=count)
        with_lora = self._with_lora(request, {})
        aesthetic, target = self._aim(request)
        _, stops = condition(with_lora.drawn, with_lora.personalizer, request, target)
        for stop in stops:
            pictures = with_lora._draw_stop(batch, aesthetic, stop, {})
            yield stop.steps, [picture for picture, unsafe in pictures if not unsafe]

    def _with_lora(self, request: Request, seconds: dict[str, float]) -> Self:
        """This service, or where a LoRA is given, one that draws with it and is dropped with the prediction.

        Aesthetics, also those from pictures and phrases, stay the business of the untouched CLIP.
        """
        if request.lora is None:
            return self
        with self._timed(seconds, "lora"):
            return type(self)(apply_lora(self.model, request.lora, request.lora_scale), self.registry, self._faster)

    def _aim(self, request: Request) -> tuple[Aesthetic | None, Tensor | None]:
        """The aesthetic to follow, and the direction [1, D] that it gives; None if the plain model is to draw."""
        aesthetic = target.requested_aesthetic(request, self.model, self.registry)
        return aesthetic, None if aesthetic is None else target.target_embedding(request, self.model, aesthetic)

    def _draw_stop(
        self,
        request: Request,
        aesthetic: Aesthetic | None,
        stop: PersonalizedConditioning,
        seconds: dict[str, float],
        start: img2img.InitLatents | None = None,
        ready: Callable[[Image.Image, metadata.Recipe], object] = _ignore,
    ) -> Iterator[tuple[Picture, bool]]:
        """The pictures of a request at one stop, and whether each may not be shown.

        What the safety checker is to look at is prepared while the next picture is being decoded.
        """
        with self._timed(seconds, "denoise"):
            latents = sampling.denoise(self.drawn, stop.conditioning, request, start)
        init_image = start.init if start is not None else None
        is_checked = not request.disable_safety_checker and self.model.pipeline.safety_checker is not None
        drawn: list[tuple[int, Picture, Future[Tensor] | None]] = []
        for i, image in self._decoded(request, latents, init_image, seconds):
            recipe = self._recipe(request, aesthetic, init_image, stop, i)
            ready(image, recipe)
            pixels = WORKERS.submit(sampling.checker_pixels, self.model, image) if is_checked else None
            drawn.append((i, (image, recipe), pixels))
        for i, picture, pixels in drawn:
            with self._timed(seconds, "safety"):
                unsafe = pixels is not None and sampling.is_unsafe(self.drawn, pixels.result())
            if unsafe:
                log.warning("The safety checker kept picture %d back", i)
            yield picture, unsafe

    def _decoded(
        self, request: Request, latents: Tensor, init_image: InitImage | None, seconds: dict[str, float]
    ) -> Iterator[tuple[int, Image.Image]]:
        """The places in the batch and their pictures; no place that overflowed."""
        decoded = sampling.decode(self.drawn, latents)
        for i in range(request.num_outputs):
            check()
            with self._timed(seconds, "decode"):
                image = next(decoded)
                if image is not None and init_image is not None:
                    image = img2img.paste_kept_pixels(image, init_image)
                picture = None if image is None else sampling.to_pil(self.model, image)
            if picture is None:
                log.warning("Picture %d overflowed and is left out", i)
            else:
                yield i, picture

    def _recipe(
        self,
        request: Request,
        aesthetic: Aesthetic | None,
        init_image: InitImage | None,
        stop: PersonalizedConditioning,
        i: int,
    ) -> metadata.Recipe:
        """How to draw picture i of the request at a stop, alone."""
        assert request.seed is not None
        alone = replace(
            request,
            seed=request.seed + i,
            num_outputs=1,
            aesthetic_steps=stop.steps,
            aesthetic_sweep=None,
            aesthetic_until=None,
        )
        facts = {}
        if aesthetic is not None and stop.steps:
            facts = {"name": aesthetic.name, "source": aesthetic.source, "sha256": aesthetic.sha256}
            if aesthetic.source == "name":
                alone = replace(alone, aesthetic_embedding=aesthetic.name)
        files = {} if init_image is None else init_image.files
        if self.model.lora is not None:
            files = {**files, "lora": self.model.lora}
        return metadata.Recipe.of(
            alone,
            model={
                "name": self.model.snapshot.name,
                "revision": self.model.snapshot.revision,
                "precision": str(self.model.pipeline.dtype).removeprefix("torch."),
                "speed": "plain" if self._faster is None else self._faster.speed,
            },
            aesthetic=facts,
            files=files,
            versions=self._versions,
        )

    @contextmanager
    def _timed(self, seconds: dict[str, float], stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()  # a GPU's work is done later than it is asked for
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def locate(model: str | None = None) -> checkpoint.Snapshot:
    """The snapshot of `model`, else of AESTHETIC_MODEL, else the first that is there. Raises CheckpointError."""
    wanted = model or os.environ.get("AESTHETIC_MODEL")
    snapshot = checkpoint.locate(wanted, settings.home() / "weights")
    if snapshot.bundled and not wanted:
        log.info(
            "No model has been downloaded: %s, small and part of the checkout, draws. "
            "script/download-weights gets Stable Diffusion",
            snapshot.name,
        )
    return snapshot


def _sheet(drawing: Result) -> bytes:
    """A sheet of the pictures of a sweep, as a file."""
    labels = [steps_label(recipe.request["aesthetic_steps"]) for _, recipe in drawing.pictures]
    sheet = contact_sheet([[image for image, _ in drawing.pictures]], columns=labels)
    return metadata.encode_sheet(sheet, drawing.request)


def _require_some(request: Request, pictures: Sequence[object], blocked: int) -> None:
    if not pictures and blocked:
        raise DrawingError("the safety checker kept every picture back: try another prompt or seed")
    if not pictures:
        raise DrawingError(
            "the denoising overflowed and left no picture: try another seed or scheduler, a lower "
            "guidance_scale or a lower aesthetic_lr" + (", or a lower lora_scale" if request.lora else "")
        )
