"""Measure each stage and the whole of a prediction, beside plain diffusers with the original's loop.

Both ways run in turn in one process on the same inputs, so that other load on the machine affects both equally. The
table also shows the least time that a stage can take: see roofline.py.
"""

import contextlib
import io
import logging
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..acceleration import modules
from ..embeddings.registry import Registry
from ..models.loading import Model
from ..request import Request
from ..service import Service
from . import roofline
from .roofline import Rates
from .stages import PLAIN, TEN, Stages, with_random_aesthetic

__all__ = ["Case", "compare", "run", "table"]

LIBRARIES = ("torch", "diffusers", "transformers", "pillow")


@dataclass(frozen=True, kw_only=True)
class Case:
    """The measurements of one request. A way is "plain diffusers" or the service's speed.

    speed:      the service's, one of settings.SPEEDS.
    seconds:    of every repeat, by stage and way.
    floor:      the least seconds that a stage can take on this device, for stages whose work is known.
    peak:       most bytes of GPU memory reserved by torch during a prediction of the service.
    difference: of the service's conditioning and latents from those of plain diffusers, relative.
    repeatable: whether all repeats gave the same files, by way.
    """

    width: int
    height: int
    outputs: int
    steps: int
    aesthetic_steps: int
    scheduler: str
    speed: str
    seconds: dict[str, dict[str, list[float]]]
    floor: dict[str, float]
    peak: int
    difference: dict[str, float]
    repeatable: dict[str, bool]


def run(
    load: Callable[[], Model],
    speed: str,
    requests: Sequence[Request],
    *,
    repeats: int,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Measure requests, each `repeats` times, and return the results; `say` gets them as text.

    load:  returns the model.
    speed: the service's, one of settings.SPEEDS.
    """
    model = load()
    service = Service(model, Registry(), modules.accelerate(model, speed))
    peaks = [_peak(service, request) for request in requests]
    if speed != "plain":
        model = load()  # plain diffusers on weights as they are stored: acceleration changes their memory order
    rates = roofline.measure(model.device, {model.dtype, model.pipeline.vae.dtype, model.encoder.dtype})
    facts = _facts(model)
    facts |= {f"{_name(dtype)} TFLOP/s": f"{rate / 1e12:.4g}" for dtype, rate in rates.flops.items()}
    facts |= {"copy GB/s": f"{rates.bytes / 1e9:.4g}"}
    say("\n".join(f"{name:<18}{fact}" for name, fact in facts.items()))
    cases = []
    for request, peak in zip(requests, peaks, strict=True):
        case = compare(model, service, request, rates, repeats=repeats)
        cases.append(replace(case, peak=peak))
        say("\n" + table(cases[-1]))
    return {"facts": facts, "cases": [asdict(case) for case in cases]}


def _peak(service: Service, request: Request) -> int:
    """Most bytes of GPU memory that torch reserves for a request; 0 where there is no GPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder, _quiet():
        service.predict(with_random_aesthetic(request, service.model, Path(folder)), Path(folder))
    return torch.cuda.max_memory_reserved()


def _facts(model: Model) -> dict[str, str]:
    """The model, the device, and the versions of libraries."""
    on_gpu = model.device.type == "cuda"
    return {
        "model": model.snapshot.name,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "cuda": str(torch.version.cuda) if on_gpu else "none",
        "precision": _name(model.dtype),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare(model: Model, service: Service, request: Request, rates: Rates, *, repeats: int) -> Case:
    """Measure one request with a seed `repeats` times: plain diffusers on `model`, and a service."""
    with TemporaryDirectory() as folder, _quiet():
        stages = Stages(model, service, request, Path(folder))
        seconds: dict[str, dict[str, list[float]]] = {
            stage: {way: [] for way in ways} for stage, ways in stages.ways.items()
        }
        files: dict[str, set[object]] = {way: set() for way in stages.ways["whole"]}
        for repeat in range(repeats + 1):
            for stage, ways in stages.ways.items():
                for way in list(ways)[:: -1 if repeat % 2 else 1]:
                    took, result = roofline.seconds(model.device, ways[way])
                    if repeat:  # the first run is slower, and does not count
                        seconds[stage][way].append(took)
                        if stage == "whole":
                            files[way].add(result)
        floor = {stage: work.floor(rates) for stage, work in stages.work.items()}
        return Case(
            width=request.width,
            height=request.height,
            outputs=request.num_outputs,
            steps=request.num_inference_steps,
            aesthetic_steps=request.aesthetic_steps,
            scheduler=request.scheduler,
            speed=service.speed,
            seconds=seconds,
            floor={**floor, "whole": sum(least for stage, least in floor.items() if stage != TEN)},
            peak=0,
            difference=stages.differences(service),
            repeatable={way: len(different) == 1 for way, different in files.items()},
        )


def table(case: Case) -> str:
    """The results as a Markdown table: medians, with the least and the most of all repeats."""
    guided = f"{case.outputs} × {case.width} × {case.height}, {case.steps} steps of {case.scheduler}"
    heads = ["stage", "floor", PLAIN, case.speed, "faster", "of the floor"]
    lines = [
        f"{guided}, {case.aesthetic_steps} aesthetic steps; milliseconds, median (least to most)",
        "",
        _row(heads),
        _row(["---"] * len(heads)),
    ]
    for name, ways in case.seconds.items():
        least, (plain, ours) = case.floor.get(name), map(statistics.median, ways.values())
        floor, share = ("", "") if least is None else (f"{1000 * least:.3g}", f"{ours / least:.1f} ×")
        lines.append(_row([name, floor, *map(_spread, ways.values()), f"{plain / ours:.2f} ×", share]))
    facts = [f"{apart:.1e} from {PLAIN} in its {what}" for what, apart in case.difference.items()]
    if case.peak:
        facts.append(f"{case.peak / 2**30:.1f} GiB of memory at most")
    lines += ["", f"{case.speed}: {', '.join(facts)}"]
    same = (f"{way} {'yes' if repeats else 'NO'}" for way, repeats in case.repeatable.items())
    return "\n".join([*lines, f"the same files in every repeat: {', '.join(same)}"])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(seconds: Sequence[float]) -> str:
    middle, *ends = (1000 * value for value in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle:.4g} ({ends[0]:.4g} to {ends[1]:.4g})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the bars and the log of predictions."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
