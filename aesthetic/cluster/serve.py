"""One address for many users: predictions wait in a queue, and Ray Serve spreads them over replicas.

The ingress checks requests and gives that of a replica which died to another. A client that hangs up cancels its
prediction: Serve cancels the ingress's task, that cancels the replica's, and the prediction ends at its next step.
"""

import asyncio
import base64
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import HTTPOptions

from ..cancellation import Predictions
from ..embeddings.registry import Registry
from ..errors import SettingError
from ..models.checkpoint import Snapshot, locate
from ..request import Request
from . import ingress, prediction
from .files import open_url
from .workers import ATTEMPTS, Cluster, connected, load, shares, variables

__all__ = ["Address", "build", "serving"]

AHEAD = 3  # predictions that a replica takes, to draw one of them: Serve's router looks again after up to 0.5 s
NAME = "aesthetic"
QUEUE = 100
MEDIA = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to listen, and how many predictions to take.

    replicas: the fewest and the most; None is as many as workers.
    queue:    predictions that wait or are drawn at once.
    """

    host: str
    port: int
    replicas: tuple[int, int] | None
    queue: int


@contextmanager
def serving(address: Address, *, model: Snapshot, cluster: Cluster) -> Iterator[None]:
    """Serve until the body of the with statement ends. Raises SettingError if no replica can draw."""
    with connected(cluster):
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=address.host, port=address.port))
        count, share = shares(None)
        try:
            serve.run(
                _application(model, address.replicas or (count, count), address.queue, share),
                name=NAME,
                route_prefix="/",
            )
        except RuntimeError as error:  # which doesn't say why
            found = serve.status().applications[NAME].deployments.values()
            [reason, *_] = [one.message.strip().splitlines()[-1] for one in found if one.message] or [str(error)]
            raise SettingError(f"no replica could start: {reason}") from error
        else:
            yield
        finally:
            serve.shutdown()


def build(arguments: Mapping[str, Any]) -> Any:
    """The application for Ray Serve's own commands and KubeRay: the import path aesthetic.cluster.serve:build.

    arguments: model, as `checkpoint.locate` takes it; replicas, as 2 or 1-4; queue; gpus, of each replica.
    """
    fewest, _, most = str(arguments.get("replicas", 1)).partition("-")
    share = {"num_gpus": float(arguments.get("gpus", 1))}
    replicas, queue = (int(fewest), int(most or fewest)), int(arguments.get("queue", QUEUE))
    return _application(locate(arguments.get("model")), replicas, queue, share)


def _application(model: Snapshot, replicas: tuple[int, int], queue: int, share: dict[str, Any]) -> Any:
    fewest, most = replicas
    scaling = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": AHEAD - 1}
    drawers = serve.deployment(Drawer).options(
        max_ongoing_requests=AHEAD, autoscaling_config=scaling, ray_actor_options=share, health_check_period_s=5
    )
    names = list(Registry().entries)

    def api() -> FastAPI:
        return ingress.application(_predict, _is_ready, names=names, most=queue)

    entry = serve.deployment(serve.ingress(api)()).options(
        name="Ingress", max_ongoing_requests=queue + 100, ray_actor_options={"num_cpus": 0}
    )
    return entry.bind(drawers.bind(model.reference, variables()))


async def _predict(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Have a replica draw; if that dies, another one."""
    drawers = serve.get_deployment_handle("Drawer", NAME)
    for _ in range(ATTEMPTS):
        response = drawers.predict.remote(inputs)
        try:
            return dict(await response)
        except RayActorError:
            logging.exception("A replica died")
        except asyncio.CancelledError:
            response.cancel()
            raise
    return {"status": "failed", "error": f"{ATTEMPTS} replicas died of it", "logs": "", "metrics": {}}


def _is_ready() -> bool:
    drawers = serve.status().applications[NAME].deployments["Drawer"]
    return bool(drawers.replica_states.get("RUNNING"))


class Drawer:
    """A replica: a service, and the thread that its predictions run in."""

    def __init__(self, model: str, variables: dict[str, str]) -> None:
        self._service = load(model, variables)
        self._predictions = Predictions()
        self._predictions.make(self._service.warm_up, Request())

    def check_health(self) -> None:
        """Raise RuntimeError if the device fails, so that Serve replaces this replica."""
        if not (self._predictions.is_busy() or self._service.is_healthy()):
            raise RuntimeError("the device fails")

    async def predict(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Cog's answer, without the id."""
        return await self._predictions.make_async(self._predict, inputs)

    def _predict(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        with _logged() as lines:
            made = prediction.predict(self._service, inputs, open_url)
        answer: dict[str, Any] = {"logs": "".join(f"{line}\n" for line in lines), "metrics": made.metrics}
        if made.error is not None:
            return {**answer, "status": "failed", "error": made.error}
        return {**answer, "status": "succeeded", "output": [_data_url(*file) for file in made.images.items()]}


def _data_url(name: str, data: bytes) -> str:
    return f"data:{MEDIA[name.rpartition('.')[2]]};base64,{base64.b64encode(data).decode()}"


@contextmanager
def _logged() -> Iterator[list[str]]:
    """The lines that the package logs."""
    lines = list[str]()
    handler, logger = logging.Handler(), logging.getLogger("aesthetic")
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
