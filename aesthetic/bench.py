"""How fast it is: each stage and the whole of a prediction, beside plain diffusers with the original's loop.

Both ways are measured in the same process on the same inputs, in turn, so that whatever else the machine is doing
concerns them alike. Beside what is measured stands the least that the stage can take: see floor.py.
"""

import contextlib
import io
import logging
import platform
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from . import embedding, floor, output, prompt, sample, schedulers, stops
from .floor import Rates, Work
from .original import Original, difference
from .request import Request
from .service import Service

__all__ = ["Case", "Stage", "compare", "run", "table"]

PLAIN, OURS = "plain diffusers", "this"
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
    peak:       bytes of the GPU's memory that were in use at most during the whole, by way.
    difference: relative, of the conditioning and of the latents from those of plain diffusers.
    repeatable: whether all repeats gave the same files.
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
    difference: dict[str, float]
    repeatable: bool


def run(service: Service, requests: Sequence[Request], *, repeats: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Measure requests, each `repeats` times: what was measured, for machines; `say` gets it for people."""
    device, facts = service.model.device, _facts(service)
    rates = floor.measure(device, {service.model.pipeline.dtype, service.model.encoder.dtype})
    facts |= {f"{_name(dtype)} TFLOP/s": f"{rate / 1e12:.4g}" for dtype, rate in rates.flops.items()}
    facts |= {"copy GB/s": f"{rates.bytes / 1e9:.4g}"}
    say("\n".join(f"{name:<18}{fact}" for name, fact in facts.items()))
    cases = []
    for request in requests:
        cases.append(compare(service, request, rates, repeats=repeats))
        say("\n" + table(cases[-1]))
    return {"facts": facts, "cases": [asdict(case) for case in cases]}


def _facts(service: Service) -> dict[str, str]:
    """What was measured on: the device, and the versions of what drew."""
    device = service.model.device
    on_gpu = device.type == "cuda"
    return {
        "model": service.model.snapshot.name,
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "cuda": str(torch.version.cuda) if on_gpu else "none",
        "precision": _name(service.model.pipeline.dtype),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare(service: Service, request: Request, rates: Rates, *, repeats: int) -> Case:
    """Measure one request, which has a seed and an aesthetic of whatever kind, `repeats` times."""
    with TemporaryDirectory() as folder, _quiet():
        bench = _Bench(service, request, Path(folder))
        for stage in bench.stages.values():  # what the first time takes longer for is not what is asked
            for action in stage.ways.values():
                action()
        seconds: dict[str, dict[str, list[float]]] = {
            name: {way: [] for way in stage.ways} for name, stage in bench.stages.items()
        }
        peak, files = dict.fromkeys((PLAIN, OURS), 0), set()
        for repeat in range(repeats):
            for name, stage in bench.stages.items():
                for way in list(stage.ways)[:: 1 if repeat % 2 else -1]:
                    _forget_peak(service)
                    took, result = floor.seconds(service.model.device, stage.ways[way])
                    seconds[name][way].append(took)
                    if name == "whole":
                        peak[way] = max(peak[way], _peak(service))
                        files |= {(way, result)}
        return Case(
            width=request.width,
            height=request.height,
            outputs=request.num_outputs,
            steps=request.num_inference_steps,
            aesthetic_steps=request.aesthetic_steps,
            scheduler=request.scheduler,
            seconds=seconds,
            floor=_floors(bench.stages, rates),
            peak=peak,
            difference=bench.differences(),
            repeatable=len(files) == len(peak),
        )


class _Bench:
    """The stages of one request, each with its inputs ready: every way gets the same."""

    def __init__(self, service: Service, request: Request, folder: Path) -> None:
        self.service, self.model, self.folder = service, service.model, folder
        target = torch.nn.functional.normalize(
            torch.randn(1, self.model.dim, generator=torch.Generator().manual_seed(0))
        )
        embedding.save(folder / "aesthetic.safetensors", target, {})
        self.request = Request(**{**asdict(request), "aesthetic_embedding_file": folder / "aesthetic.safetensors"})
        self.target = target.to(self.model.device)
        self.tokens = prompt.tokenize(self.model, request.prompt)
        scheduler = schedulers.build(request.scheduler, self.model.scheduler)
        self.original = Original(self.model.pipeline, self.model.encoder, scheduler)
        self._draw()
        self.stages = self._stages()

    def _draw(self) -> None:
        """Once from end to end, for what each stage starts from."""
        _, [stop] = stops.condition(self.model, self.service._personalise, self.request, self.target)
        self.conditioning = stop.conditioning
        self.noise = sample.starting_noise(self.model, self.request, sample.generators(self.request))
        self.latents = sample.denoise(self.model, self.conditioning, self.request)
        self.images = [image for image in sample.decode(self.model, self.latents) if image is not None]
        self.drawing = self.service.draw(self.request)

    def _stages(self) -> dict[str, Stage]:
        work = self._work()
        ways: dict[str, Sequence[Callable[[], object]]] = {
            "personalisation": (self._plain_personalisation, self._personalisation),
            "UNet step": (self._unet, self._unet),
            "denoising": (self._plain_denoising, self._denoising),
            "decoding": (lambda: self.original.decode(self.latents), self._decoding),
            "safety check": (
                lambda: self.original.check(torch.cat(self.images)),
                lambda: [sample.is_unsafe(self.model, image) for image in self.images],
            ),
            "PNG": (lambda: self.original.save([image for image, _ in self.drawing.pictures], self.folder), self._png),
            "whole": (self._plain_whole, self._whole),
        }
        return {
            name: Stage(ways=dict(zip((PLAIN, OURS), both, strict=True)), work=work.get(name))
            for name, both in ways.items()
        }

    def _plain_personalisation(self) -> Tensor:
        request = self.request
        return self.original.personalise(
            self.tokens.input_ids, self.target, steps=request.aesthetic_steps, lr=request.aesthetic_lr
        )

    def _personalisation(self, steps: int | None = None) -> Tensor:
        request = self.request
        run = self.service._personalise(
            self.tokens.input_ids,
            self.target,
            steps=request.aesthetic_steps if steps is None else steps,
            lr=request.aesthetic_lr,
        )
        [last] = deque(run, maxlen=1)
        return last.conditioning

    @torch.no_grad()
    def _unet(self, count: int | None = None) -> Tensor:
        """One call as in a step of the denoising: with guidance, for twice as many pictures."""
        latents, both = self.noise[:count], self.conditioning
        embeds = [both.positive] if self.request.guidance_scale <= 1 else [both.negative, both.positive]
        conditioning = torch.cat([one.expand(len(latents), -1, -1) for one in embeds])
        step: Tensor = self.model.pipeline.unet(
            latents.repeat(len(embeds), 1, 1, 1), 500, encoder_hidden_states=conditioning, return_dict=False
        )[0]
        return step

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

    def _denoising(self) -> Tensor:
        return sample.denoise(self.model, self.conditioning, self.request)

    def _decoding(self) -> list[object]:
        images = sample.decode(self.model, self.latents)
        return [sample.to_pil(self.model, image) for image in images if image is not None]

    def _png(self) -> list[bytes]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(output.encode, *zip(*self.drawing.pictures, strict=True)))

    def _plain_whole(self) -> tuple[bytes, ...]:
        pictures = self._plain_denoising(self._plain_personalisation(), output_type="pil")
        self.original.save(pictures, self.folder)
        return tuple((self.folder / f"plain.{i}.png").read_bytes() for i in range(len(pictures)))

    def _whole(self) -> tuple[bytes, ...]:
        paths, _ = self.service.predict(self.request, self.folder)
        return tuple(path.read_bytes() for path in paths)

    def differences(self) -> dict[str, float]:
        """How far what is drawn is from what plain diffusers draws."""
        return {
            "conditioning": difference(self._personalisation(), self._plain_personalisation()),
            "latents": difference(self._denoising().float(), self._plain_denoising().float()),
        }

    def _work(self) -> dict[str, Work]:
        """What each stage asks for: operations counted for one picture, and weights read once for each use."""
        parts, count = self.model.pipeline, self.request.num_outputs
        picture = self.images[0]
        unet = Work(
            flops=count * floor.operations(lambda: self._unet(1)), bytes=floor.bytes_of(parts.unet), dtype=parts.dtype
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
        forward, step = (floor.operations(lambda steps=steps: self._personalisation(steps)) for steps in (0, 1))  # type: ignore[misc]
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
    lines = [
        f"{guided}, {case.aesthetic_steps} aesthetic steps; milliseconds, median (least to most)",
        "",
        f"| stage | {PLAIN} | {OURS} | faster | floor | of the floor |",
        "|---|---|---|---|---|---|",
    ]
    for name, ways in case.seconds.items():
        plain, ours = ways[PLAIN], ways[OURS]
        faster = statistics.median(plain) / statistics.median(ours)
        least = case.floor.get(name)
        cells = ["", ""] if least is None else [f"{1000 * least:.3g}", f"{least / statistics.median(ours):.0%}"]
        lines.append("| " + " | ".join([name, _spread(plain), _spread(ours), f"{faster:.2f} ×", *cells]) + " |")
    lines += ["", *(f"peak memory, {way}: {peak / 2**30:.2f} GiB" for way, peak in case.peak.items() if peak)]
    lines += [f"relative difference of the {what}: {apart:.1e}" for what, apart in case.difference.items()]
    return "\n".join([*lines, f"the same files in every repeat: {'yes' if case.repeatable else 'NO'}"])


def _floors(stages: Mapping[str, Stage], rates: Rates) -> dict[str, float]:
    """By stage, where there is one; that of the whole is the sum of its parts."""
    floors = {name: stage.work.floor(rates) for name, stage in stages.items() if stage.work is not None}
    return {**floors, "whole": sum(least for name, least in floors.items() if name != "UNet step")}


def _spread(seconds: Sequence[float]) -> str:
    middle, *ends = (1000 * value for value in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle:.4g} ({ends[0]:.4g} to {ends[1]:.4g})"


def _forget_peak(service: Service) -> None:
    if service.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(service: Service) -> int:
    return torch.cuda.max_memory_allocated() if service.model.device.type == "cuda" else 0


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
