"""One prediction in a worker: inputs as JSON become images in memory, or an error. Only Canceled is raised."""

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..cancellation import check
from ..errors import AestheticError, DrawingError
from ..request import FIELDS, Request, base_type
from ..service import Service
from .files import Opener, fetch

__all__ = ["FILES", "Prediction", "predict"]

log = logging.getLogger(__name__)
FILES = tuple(name for name, spec in FIELDS.items() if base_type(spec) is Path)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What became of a request.

    error:    why it gave no images; None if it did.
    is_final: whether the same request would be drawn in vain again: false for errors of files and inputs.
    images:   the encoded files by name, in order.
    metrics:  as Cog nests them.
    """

    error: str | None = None
    is_final: bool = False
    images: Mapping[str, bytes] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


def predict(service: Service, inputs: Mapping[str, Any], opened: Opener) -> Prediction:
    """Draw the request of a JSON object. If the device fails, end this process, so that Ray starts another."""
    start = time.perf_counter()
    made = _predict(service, inputs, opened)
    seconds = {"predict_time": round(time.perf_counter() - start, 3)}
    return replace(made, metrics=_nested({**made.metrics, **seconds}))


def _predict(service: Service, inputs: Mapping[str, Any], opened: Opener) -> Prediction:
    try:
        with tempfile.TemporaryDirectory(prefix="aesthetic-") as folder:
            images, metrics = _draw(service, inputs, Path(folder), opened)
    except AestheticError as error:
        return Prediction(error=f"{type(error).__name__}: {error}", is_final=isinstance(error, DrawingError))
    except Exception as error:
        check()
        log.exception("The prediction failed")
        if not service.is_healthy():
            os._exit(1)
        return Prediction(error=f"{type(error).__name__}: {error}")
    return Prediction(is_final=True, images=images, metrics=metrics)


def _draw(
    service: Service, inputs: Mapping[str, Any], folder: Path, opened: Opener
) -> tuple[dict[str, bytes], dict[str, float]]:
    """The images by name, and the metrics by their dotted names."""
    named = [name for name in FILES if isinstance(inputs.get(name), str)]
    Request.from_inputs(**{**inputs, **{name: Path(name) for name in named}})  # before any file is fetched
    files = {name: fetch(name, inputs[name], folder, opened) for name in named}
    paths, result = service.predict(Request.from_inputs(**{**inputs, **files}), folder)
    return {path.name: path.read_bytes() for path in paths}, result.metrics


def _nested(metrics: Mapping[str, float]) -> dict[str, Any]:
    """`metrics` as Cog answers them: timing.decode is decode in timing."""
    nested: dict[str, Any] = {}
    for name, value in metrics.items():
        room, _, inner = name.rpartition(".")
        (nested.setdefault(room, {}) if room else nested)[inner] = value
    return nested
