"""Faults of the machine: what a client sees, what a supervisor sees at /health-check, and what heals it."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import torch

from tests.serving import data_url, started
from tests.soak.client import in_background, seen, settled
from tests.soak.gpu import gpu_full
from tests.soak.report import Finding
from tests.soak.scene import PART, Scene, finding
from tests.soak.storage import disk_full, folder_removed, weights_damaged

FETCHES = 60


def faults() -> Iterator[tuple[str, Callable[[Scene], Iterator[Finding]]]]:
    """All of them by name; each is a generator of findings."""
    yield "temporary folder removed", folder_removed
    yield "disk full", disk_full
    yield "worker killed", worker_killed
    yield "server killed", server_killed
    yield "a bit of the weights", weights_damaged
    yield "canceled while Cog fetches a file", fetch_canceled
    if torch.cuda.is_available():
        yield "GPU memory", gpu_full


def worker_killed(scene: Scene) -> Iterator[Finding]:
    """As by the kernel when memory runs out."""
    with scene.server() as (server, _), ThreadPoolExecutor() as pool:
        waiting = in_background(pool, f"{server.address}/predictions", {"input": scene.slow})
        time.sleep(1)
        for worker in psutil.Process(server.process.pid).children(recursive=True):
            worker.kill()
        client, health = waiting.result(), settled(server.address)
        later = seen(f"{server.address}/predictions", {"input": scene.fixed})
        holds = "UNHEALTHY" in health and not client.startswith("no answer")
        client = f"{client}; later ones: {later}"
        yield finding("worker killed in a prediction", client, health, "a new server", holds=holds)


def server_killed(scene: Scene) -> Iterator[Finding]:
    """The worker must end, too, or it would keep the GPU's memory."""
    with scene.server() as (server, folder), ThreadPoolExecutor() as pool:
        workers = psutil.Process(server.process.pid).children(recursive=True)
        waiting = in_background(pool, f"{server.address}/predictions", {"input": scene.slow})
        time.sleep(1)
        server.process.kill()
        client, health = waiting.result(), settled(server.address)
        _, alive = psutil.wait_procs(workers, timeout=30)
        for worker in alive:
            worker.kill()
        left = sum(path.is_file() for path in folder.rglob("*"))
        with started(variables={"TMPDIR": str(folder)}) as again:
            draws = scene.draws(again)
        heals = f"a new server; workers left: {len(alive)}, files left in the temporary folder: {left}"
        yield finding("server killed in a prediction", client, health, heals, holds=draws and not alive)


def fetch_canceled(scene: Scene) -> Iterator[Finding]:
    """Cog's own fault: the exception can kill the thread that starts its downloads, and it waits for good."""
    upload = {**scene.fixed, "aesthetic_images": data_url(os.urandom(2**20))}
    with scene.server() as (server, _):
        for index in range(FETCHES):
            url = f"{server.address}/predictions"
            seen(url, {"id": f"fetch-{index}", "input": upload}, Prefer="respond-async")
            time.sleep(0.03 * index / FETCHES)
            seen(f"{url}/fetch-{index}/cancel", {})
            health = settled(server.address)
            if "BUSY" in health:
                client = f"409 for good after {index + 1} cancels"
                break
        else:
            client = f"nothing, in {FETCHES} cancels"
        facts = {"client": client, "/health-check": health, "healed by": "a new server" if "BUSY" in health else ""}
        yield Finding(part=PART, what="canceled while Cog fetches a file", facts=facts)
