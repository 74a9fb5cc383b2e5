"""How fast it is: each stage and the whole of a prediction, beside plain diffusers with the original's loop.

All ways are measured in the same process on the same inputs, in turn, so that whatever else the machine is doing
concerns them alike. Beside what is measured stands the least that the stage can take: see floor.py.
"""

import contextlib
import gc
import io
import logging
import platform
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from . import embedding, floor, output, prompt, sample, schedulers, stops, workers
from .floor import Rates, Work
from .gradient import Personaliser
from .original import Original, difference
from .pipeline import Model
from .request import Request
from .service import Service

__all__ = ["Case", "Stage", "compare", "run", "table"]

PLAIN = "plain diffusers"
LIBRARIES = ("torch", "diffusers", "transformers", "pillow")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a prediction: how to do it, by whose way, and what it asks for at least; None if that says nothing."""

    ways: Mapping[str, Callable[[], object]]
    work: Work | None


@dataclass(frozen=True, kw_only=True)
class Case:
    """What was measured of one request.

    seconds:    of every repeat, by stage and by way.
    floor:      the least seconds that a stage can take on this device, where there is such a number.
    peak:       bytes of the GPU's memory that torch held at most during the whole, by way of ours.
    difference: relative, of the conditioning and of the latents from those of plain diffusers, by way of ours.
    repeatable: whether all repeats of a way gave the same files, by way.
    """

    width: int
    height: int
    outputs: int
    steps: int
    aesthetic_steps: int
    scheduler: str
    seconds: dict[str, dict[str, list[float]]]
    floor: dict[str, float]
    peak: dict[str, int]
    difference: dict[str, dict[str, float]]
    repeatable: dict[str, bool]


def run(
    set_up: Callable[[str], Service],
    speeds: Sequence[str],
    requests: Sequence[Request],
    *,
    repeats: int,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Measure requests, each `repeats` times: what was measured, for machines; `say` gets it for people.

    set_up: gives a service with one of fast.SPEEDS, of which those in `speeds` are measured, always on the same model.
    """
    peaks = [_peaks(set_up, speed, requests) for speed in speeds]
    services = {speed: set_up(speed) for speed in speeds}
    model = (services.get("plain") or set_up("plain")).model
    rates = floor.measure(model.device, {model.pipeline.dtype, model.encoder.dtype})
    facts = _facts(model)
    facts |= {f"{_name(dtype)} TFLOP/s": f"{rate / 1e12:.4g}" for dtype, rate in rates.flops.items()}
    facts |= {"copy GB/s": f"{rates.bytes / 1e9:.4g}"}
    say("\n".join(f"{name:<18}{fact}" for name, fact in facts.items()))
    cases = []
    for request, *peak in zip(requests, *peaks, strict=True):
        case = compare(model, services, request, rates, repeats=repeats)
        cases.append(replace(case, peak=dict(zip(speeds, peak, strict=True))))
        say("\n" + table(cases[-1]))
    return {"facts": facts, "cases": [asdict(case) for case in cases]}


def _peaks(set_up: Callable[[str], Service], speed: str, requests: Sequence[Request]) -> list[int]:
    """How much memory each request takes while there is no other service; 0 on a CPU, where nobody counts it."""
    if not torch.cuda.is_available():
        return [0] * len(requests)
    service = set_up(speed)
    peaks = [_peak(service, request) for request in requests]
    del service
    gc.collect()
    return peaks


def _peak(service: Service, request: Request) -> int:
    """Bytes that torch takes of the GPU's memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder, _quiet():
        service.predict(_followed(request, service.model, Path(folder)), Path(folder))
    return torch.cuda.max_memory_reserved()


def _followed(request: Request, model: Model, folder: Path) -> Request:
    """`request` with an aesthetic of whatever kind, which is written to `folder`."""
    path, dice = folder / "aesthetic.safetensors", torch.Generator().manual_seed(0)
    embedding.save(path, torch.nn.functional.normalize(torch.randn(1, model.dim, generator=dice)), {})
    return replace(request, aesthetic_embedding_file=path)


def _facts(model: Model) -> dict[str, str]:
    """What was measured on: the device, and the versions of what drew."""
    on_gpu = model.device.type == "cuda"
    return {
        "model": model.snapshot.name,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "cuda": str(torch.version.cuda) if on_gpu else "none",
        "precision": _name(model.pipeline.dtype),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare(model: Model, services: Mapping[str, Service], request: Request, rates: Rates, *, repeats: int) -> Case:
    """Measure one request, which has a seed, `repeats` times: a model as it is, and services by what to call them."""
    with TemporaryDirectory() as folder, _quiet():
        bench = _Bench(model, services, request, Path(folder))
        for stage in bench.stages.values():  # what the first time takes longer for is not what is asked
            for action in stage.ways.values():
                action()
        seconds: dict[str, dict[str, list[float]]] = {
            name: {way: [] for way in stage.ways} for name, stage in bench.stages.items()
        }
        files: dict[str, set[object]] = {way: set() for way in bench.stages["whole"].ways}
        for repeat in range(repeats):
            for name, stage in bench.stages.items():
                for way in list(stage.ways)[:: 1 if repeat % 2 else -1]:
                    took, result = floor.seconds(model.device, stage.ways[way])
                    seconds[name][way].append(took)
                    if name == "whole":
                        files[way].add(result)
        return Case(
            width=request.width,
            height=request.height,
            outputs=request.num_outputs,
            steps=request.num_inference_steps,
            aesthetic_steps=request.aesthetic_steps,
            scheduler=request.scheduler,
            seconds=seconds,
            floor=_floors(bench.stages, rates),
            peak={},
            difference={way: bench.differences(service) for way, service in services.items()},
            repeatable={way: len(different) == 1 for way, different in files.items()},
        )


class _Bench:
    """The stages of one request, each with its inputs ready: every way gets the same."""

    def __init__(self, model: Model, services: Mapping[str, Service], request: Request, folder: Path) -> None:
        self.model, self.services, self.folder = model, services, folder
        self.request = _followed(request, self.model, folder)
        assert self.request.aesthetic_embedding_file is not None
        self.target = embedding.read(self.request.aesthetic_embedding_file).vector.to(self.model.device)
        self.tokens = prompt.tokenize(self.model, request.prompt)
        scheduler = schedulers.build(request.scheduler, self.model.scheduler)
        self.original = Original(self.model.pipeline, self.model.encoder, scheduler)
        self._draw()
        self.stages = self._stages()

    def _draw(self) -> None:
        """Once from end to end, for what each stage starts from."""
        _, [stop] = stops.condition(self.model, Personaliser(self.model.encoder), self.request, self.target)
        self.conditioning = stop.conditioning
        self.noise = sample.starting_noise(self.model, self.request, sample.generators(self.request))
        self.latents = sample.denoise(self.model, self.conditioning, self.request)
        self.images = [image for image in sample.decode(self.model, self.latents) if image is not None]
        self.drawing = next(iter(self.services.values())).draw(self.request)

    def _stages(self) -> dict[str, Stage]:
        work, step = self._work(), self._step(self.request.num_outputs)
        plain: dict[str, Callable[[], object]] = {
            "personalisation": self._plain_personalisation,
            "UNet step": lambda: self._unet(self.model, step),
            "denoising": self._plain_denoising,
            "decoding": lambda: self.original.decode(self.latents),
            "safety check": lambda: self.original.check(torch.cat(self.images)),
            "PNG": lambda: self.original.save([image for image, _ in self.drawing.pictures], self.folder),
            "whole": self._plain_whole,
        }
        ours = {way: self._ours(service) for way, service in self.services.items()}
        return {
            name: Stage(
                ways={PLAIN: action, **{way: actions[name] for way, actions in ours.items()}}, work=work.get(name)
            )
            for name, action in plain.items()
        }

    def _ours(self, service: Service) -> dict[str, Callable[[], object]]:
        """Each stage as a service does it."""
        step = self._step(self.request.num_outputs)
        return {
            "personalisation": lambda: self._personalisation(service.personalise),
            "UNet step": lambda: self._unet(service.drawn, step),
            "denoising": lambda: sample.denoise(service.drawn, self.conditioning, self.request),
            "decoding": lambda: self._decoding(service.drawn),
            "safety check": lambda: self._check(service.drawn),
            "PNG": self._png,
            "whole": lambda: self._whole(service),
        }

    def _plain_personalisation(self) -> Tensor:
        request = self.request
        return self.original.personalise(
            self.tokens.input_ids, self.target, steps=request.aesthetic_steps, lr=request.aesthetic_lr
        )

    def _personalisation(self, personalise: Personaliser, steps: int | None = None) -> Tensor:
        request = self.request
        run = personalise(
            self.tokens.input_ids,
            self.target,
            steps=request.aesthetic_steps if steps is None else steps,
            lr=request.aesthetic_lr,
        )
        [last] = deque(run, maxlen=1)
        return last.conditioning

    def _step(self, count: int) -> dict[str, Tensor]:
        """What the UNet is called with in a step of the denoising: with guidance, for twice as many pictures."""
        latents, both = self.noise[:count], self.conditioning
        embeds = [both.positive] if self.request.guidance_scale <= 1 else [both.negative, both.positive]
        return {
            "sample": latents.repeat(len(embeds), 1, 1, 1),
            "timestep": torch.tensor(500, device=latents.device),
            "encoder_hidden_states": torch.cat([one.expand(count, -1, -1) for one in embeds]),
        }

    @torch.no_grad()
    def _unet(self, model: Model, step: Mapping[str, Tensor]) -> Tensor:
        noise: Tensor = model.pipeline.unet(**step, return_dict=False)[0]
        return noise

    def _plain_denoising(self, embeds: Tensor | None = None, **options: Any) -> Any:
        request = self.request
        sources = sample.generators(request)  # whatever else they give, as to ancestral samplers, comes after the noise
        return self.original.denoise(
            self.conditioning.positive if embeds is None else embeds,
            sample.starting_noise(self.model, request, sources),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            width=request.width,
            height=request.height,
            generator=sources,
            **{"output_type": "latent", **options},
        )

    def _decoding(self, model: Model) -> list[object]:
        images = sample.decode(model, self.latents)
        return [sample.to_pil(model, image) for image in images if image is not None]

    def _check(self, model: Model) -> list[bool]:
        if model.pipeline.safety_checker is None:
            return []
        return [sample.is_unsafe(model, sample.checker_pixels(model, image)) for image, _ in self.drawing.pictures]

    def _png(self) -> list[bytes]:
        files = [workers.shared().submit(output.encode, *picture) for picture in self.drawing.pictures]
        return [file.result() for file in files]

    def _plain_whole(self) -> tuple[bytes, ...]:
        pictures = self._plain_denoising(self._plain_personalisation(), output_type="pil")
        self.original.save(pictures, self.folder)
        return tuple((self.folder / f"plain.{i}.png").read_bytes() for i in range(len(pictures)))

    def _whole(self, service: Service) -> tuple[bytes, ...]:
        paths, _ = service.predict(self.request, self.folder)
        return tuple(path.read_bytes() for path in paths)

    def differences(self, service: Service) -> dict[str, float]:
        """How far what a service draws is from what plain diffusers draws."""
        latents = sample.denoise(service.drawn, self.conditioning, self.request)
        return {
            "conditioning": difference(self._personalisation(service.personalise), self._plain_personalisation()),
            "latents": difference(latents.float(), self._plain_denoising().float()),
        }

    def _work(self) -> dict[str, Work]:
        """What each stage asks for: operations counted for one picture, and weights read once for each use."""
        parts, count = self.model.pipeline, self.request.num_outputs
        picture = self.images[0]
        unet = Work(
            flops=count * floor.operations(lambda: self._unet(self.model, self._step(1))),
            bytes=floor.bytes_of(parts.unet),
            dtype=parts.dtype,
        )
        work = {
            "personalisation": self._personalising_work(),
            "UNet step": unet,
            "denoising": unet.times(self._calls()),
            "decoding": Work(
                flops=count * floor.operations(lambda: self.original.decode(self.latents[:1])),
                bytes=floor.bytes_of(parts.vae.decoder),
                dtype=parts.dtype,
            ),
        }
        if parts.safety_checker is not None:
            work["safety check"] = Work(
                flops=count * floor.operations(lambda: self.original.check(picture)),
                bytes=floor.bytes_of(parts.safety_checker),
                dtype=parts.dtype,
            )
        return work

    def _personalising_work(self) -> Work:
        """A step moves the weights ten times: forward, backward, as gradients, and Adam reads four and writes three."""
        steps, tower = self.request.aesthetic_steps, self.model.encoder.text_model
        personalise = Personaliser(self.model.encoder)
        forward, step = (
            floor.operations(lambda steps=steps: self._personalisation(personalise, steps))  # type: ignore[misc]
            for steps in (0, 1)
        )
        weights = floor.bytes_of(tower) - floor.bytes_of(tower.get_input_embeddings())
        return Work(
            flops=forward + steps * (step - forward),
            bytes=weights * (2 + 10 * steps + 1),  # the copy at the beginning, the forward pass at the end
            dtype=self.model.encoder.dtype,
        )

    def _calls(self) -> int:
        """How often plain diffusers calls the UNet."""
        calls: list[object] = []
        hook = self.model.pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(None))
        try:
            self._plain_denoising()
        finally:
            hook.remove()
        return len(calls)


def table(case: Case) -> str:
    """What was measured, for people: medians, with the least and the most of all repeats."""
    guided = f"{case.outputs} × {case.width} × {case.height}, {case.steps} steps of {case.scheduler}"
    ours = list(case.difference)
    heads = ["stage", "floor", PLAIN, *(head for way in ours for head in (way, "faster", "of the floor"))]
    lines = [
        f"{guided}, {case.aesthetic_steps} aesthetic steps; milliseconds, median (least to most)",
        "",
        _row(heads),
        _row(["---"] * len(heads)),
    ]
    for name, ways in case.seconds.items():
        least, plain = case.floor.get(name), statistics.median(ways[PLAIN])
        cells = [name, "" if least is None else f"{1000 * least:.3g}", _spread(ways[PLAIN])]
        for way in ours:
            median = statistics.median(ways[way])
            share = "" if least is None else f"{median / least:.1f} ×"
            cells += [_spread(ways[way]), f"{plain / median:.2f} ×", share]
        lines.append(_row(cells))
    lines.append("")
    for way in ours:
        facts = [f"{apart:.1e} from {PLAIN} in its {what}" for what, apart in case.difference[way].items()]
        if case.peak.get(way):
            facts.append(f"{case.peak[way] / 2**30:.1f} GiB of memory at most")
        lines.append(f"{way}: {', '.join(facts)}")
    same = (f"{way} {'yes' if repeats else 'NO'}" for way, repeats in case.repeatable.items())
    return "\n".join([*lines, f"the same files in every repeat: {', '.join(same)}"])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _floors(stages: Mapping[str, Stage], rates: Rates) -> dict[str, float]:
    """By stage, where there is one; that of the whole is the sum of its parts."""
    floors = {name: stage.work.floor(rates) for name, stage in stages.items() if stage.work is not None}
    return {**floors, "whole": sum(least for name, least in floors.items() if name != "UNet step")}


def _spread(seconds: Sequence[float]) -> str:
    middle, *ends = (1000 * value for value in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle:.4g} ({ends[0]:.4g} to {ends[1]:.4g})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and the log of each prediction, of which there are many."""
    level = logging.getLogger("aesthetic").level
    logging.getLogger("aesthetic").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.getLogger("aesthetic").setLevel(level)
