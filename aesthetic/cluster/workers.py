"""Workers on Ray that each hold a Service, and the division of work among them.

Ray Data hands each worker one item at a time, and the items of a worker that died to another.
"""

import logging
import os
import pickle
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from ..errors import DrawingError, SettingError
from ..models import checkpoint
from ..service import Service
from ..settings import silence_libraries

__all__ = ["ATTEMPTS", "Cluster", "connected", "load", "shares", "variables", "work"]

ATTEMPTS = 3  # how many workers may die of an item
BLOCKS = 10_000  # pieces that Ray Data keeps account of; a worker that dies loses its place in one
OBJECTS = 512 * 2**20  # bytes of shared memory for what workers return, on this machine
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where to work.

    address: of a Ray cluster, as ray.init takes it; None is this machine alone.
    workers: how many; None is one for each GPU, or without GPUs one for each machine.
    """

    address: str | None = None
    workers: int | None = None


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Join the cluster, or start Ray on this machine and stop it in the end. Raises SettingError if that fails.

    SIGTERM then raises KeyboardInterrupt, as Ctrl-C does.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS}
    host, _, port = (cluster.address or "").removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for seven minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(cluster.address or "local", **quiet, **({} if cluster.address else local))
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise SettingError(f"Ray can't be reached at {cluster.address or 'this machine'}: {error}") from error
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own dumps its stack
    try:
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def shares(workers: int | None) -> tuple[int, dict[str, Any]]:
    """How many workers to start, and what each takes of the cluster: a GPU, or its part of the cores.

    Raises SettingError if the cluster has neither.
    """
    if gpus := int(ray.cluster_resources().get("GPU", 0)):
        return workers or gpus, {"num_gpus": 1}
    cores = [int(node["Resources"]["CPU"]) for node in ray.nodes() if node["Resources"].get("CPU")]
    if not cores:
        raise SettingError("the cluster has neither GPUs nor cores: wait until its nodes are there")
    count = workers or len(cores)
    return count, {"num_cpus": max(1, min(*cores, sum(cores) // count))}


def work(
    task: Callable[[Service, Item], Outcome], items: Sequence[Item], *, model: checkpoint.Snapshot, cluster: Cluster
) -> Iterator[tuple[Item, Outcome | DrawingError]]:
    """Call `task` on each item in a worker, and yield the items with what it returned, as they are done.

    An item that took three workers down comes with a DrawingError. Raises SettingError if no worker can load the model,
    and if `task` raises.
    """
    with connected(cluster):
        count, share = shares(cluster.workers)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"index": index, "item": pickle.dumps(item)} for index, item in enumerate(items)]
        done = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map(
            _Worker,
            fn_constructor_args=[task, model.reference, variables(), _attempts()],
            compute=ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            **share,
        )
        try:
            for row in done.iter_rows():
                yield items[row["index"]], pickle.loads(row["outcome"])  # noqa: S301  (our worker's)
        except RayError as error:  # its last line is the worker's own error
            raise SettingError(f"the workers stopped: {str(error).strip().splitlines()[-1]}") from error


def variables() -> dict[str, str]:
    """The environment variables that workers share with this process."""
    return {name: value for name, value in os.environ.items() if name.startswith("AESTHETIC_")}


def load(model: str, variables: dict[str, str]) -> Service:
    """The service of a worker, on the GPU or the cores that Ray gave it."""
    os.environ.update(variables, TQDM_DISABLE="1")
    silence_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return Service.load(model)


class _Worker:
    """Does a task with its service."""

    def __init__(
        self, task: Callable[[Service, Any], object], model: str, variables: dict[str, str], attempts: Any
    ) -> None:
        self._service = load(model, variables)
        self._task, self._attempts = task, attempts

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if ray.get(self._attempts.begin.remote(row["index"])) > ATTEMPTS:
            outcome: object = DrawingError(f"{ATTEMPTS} workers died of it")
        else:
            outcome = self._task(self._service, pickle.loads(row["item"]))  # noqa: S301  (our driver's)
        return {"index": row["index"], "outcome": pickle.dumps(outcome)}


class _Attempts:
    """Counts how often each item was begun: Ray would try one that kills its workers for ever."""

    def __init__(self) -> None:
        self._begun = Counter[int]()

    def begin(self, index: int) -> int:
        self._begun[index] += 1
        return self._begun[index]


def _attempts() -> Any:
    """A handle of the counter, which has a process of its own."""
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
