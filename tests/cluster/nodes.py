"""A Ray cluster of two nodes of one core each, on this machine and on loopback alone, and the processes in it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch

from tests.snapshot import ROOT

NODE = {"num_cpus": 1, "num_gpus": 0, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
SETTINGS = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as in this process: sums round by how they are split
    "RAY_USAGE_STATS_ENABLED": "0",
    "CUDA_VISIBLE_DEVICES": "",
    "RAY_DISABLE_MEMORY_MONITOR": "1",
    "RAY_worker_niceness": "0",  # Ray's is 15: beside other tests, workers would get no core for minutes
}
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on any system: use 127.0.0.1 only. Read when Ray is imported


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster. In the end none of its processes is left."""
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)  # which the nodes inherit
    from ray.cluster_utils import Cluster  # which takes seconds

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        yield cluster.address
    finally:
        started = psutil.Process().children(recursive=True)
        cluster.shutdown()
        left = [process.name() for process in psutil.wait_procs(started, timeout=30)[1]]
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        assert not left


def workers(name: str) -> list[psutil.Process]:
    """The processes of Ray's actors of this class."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and name in process.cmdline()[0]:
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return found


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Raise TimeoutError unless the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)
