"""Faults of the machine: what a client sees, what a supervisor sees at /health-check, and what heals it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.serving import Server, data_url, started
from tests.soak.client import Client, in_background, seen, settled
from tests.soak.report import Finding

PART = "faults"
TMPFS = 4  # MiB of a disk that gets full
FETCHES = 60
# A server with a small disk of its own, in which Cog keeps its folders, too. No root is needed where the kernel allows
# user namespaces.
SMALL_DISK = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNT = f"""set -e
mount -t tmpfs -o size={TMPFS}m none "$TMPDIR"
mkdir -p "$TMPDIR/coglet" /tmp/coglet
mount --bind "$TMPDIR/coglet" /tmp/coglet
exec "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What each fault is tried with.

    home:     the model and the aesthetics, which are not changed.
    fixed:    the inputs of the prediction that is tried afterwards, and `expected` its file.
    slow:     inputs of a prediction that takes some seconds at least.
    """

    home: Path
    fixed: dict[str, Any]
    expected: bytes
    slow: dict[str, Any]

    @contextmanager
    def server(self, prefix: tuple[str, ...] = (), **variables: str) -> "Iterator[tuple[Server, Path]]":
        """A server, and its temporary folder."""
        with (
            tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder,
            started(prefix=prefix, variables={"TMPDIR": folder, **variables}) as server,
        ):
            yield server, Path(folder)

    def draws(self, server: Server) -> bool:
        """Whether the fixed prediction has its own bytes."""
        try:
            return Client(server.address, self.fixed).fixed_file() == self.expected
        except (AssertionError, OSError):
            return False


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


def _finding(what: str, client: str, health: str, heals: str, *, holds: bool) -> Finding:
    facts = {"client": client, "/health-check": health, "healed by": heals}
    return Finding(part=PART, what=what, facts=facts, holds=holds)


def folder_removed(scene: Scene) -> Iterator[Finding]:
    """A cleaner of /tmp removes the folder, between predictions and in one."""
    with scene.server() as (server, folder), ThreadPoolExecutor() as pool:
        _empty(folder)
        client = seen(f"{server.address}/predictions", {"input": scene.fixed})
        draws = scene.draws(server)
        heals, health = _heals("the next prediction", draws), settled(server.address)
        yield _finding("temporary folder removed, then a prediction", client, health, heals, holds=draws)
        waiting = in_background(pool, f"{server.address}/predictions", {"input": scene.slow}, timeout=300)
        time.sleep(1)
        _empty(folder)
        client, draws = waiting.result(), scene.draws(server)
        heals, health = _heals("the next prediction", draws), settled(server.address)
        yield _finding("temporary folder removed in a prediction", client, health, heals, holds=draws)


def _heals(what: str, draws: bool) -> str:
    return what if draws else "nothing"


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def disk_full(scene: Scene) -> Iterator[Finding]:
    """No space for the image, or for a file that a client sends."""
    what = "disk full, no space for "
    if subprocess.run([*SMALL_DISK, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode:
        yield Finding(part=PART, what=what + "files", facts={"client": "skipped: no user namespaces here"})
        return
    with scene.server((*SMALL_DISK, MOUNT, "sh")) as (server, folder):
        inside = Path(f"/proc/{server.process.pid}/root{folder}")
        upload = data_url(os.urandom(2**20))
        for name, inputs in (("the image", {}), ("an input file", {"aesthetic_images": upload})):
            _fill(inside / "filler")
            client = seen(f"{server.address}/predictions", {"input": {**scene.fixed, **inputs}})
            health = settled(server.address)
            (inside / "filler").unlink()
            draws = scene.draws(server)
            holds = draws and "No space left" in client
            yield _finding(what + name, client, health, _heals("space, no restart", draws), holds=holds)


def _fill(path: Path) -> None:
    """Write to a file until nothing more fits on its disk."""
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


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
        yield _finding("worker killed in a prediction", client, health, "a new server", holds=holds)


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
        yield _finding("server killed in a prediction", client, health, heals, holds=draws and not alive)


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


def weights_damaged(scene: Scene) -> Iterator[Finding]:
    """One bit of the UNet's file is turned, in its header and in its numbers."""
    for what, place in (("header", 20), ("numbers", -1000)):
        with tempfile.TemporaryDirectory(prefix="soak-home-") as copy:
            shutil.copytree(scene.home, copy, dirs_exist_ok=True)
            [file] = Path(copy).glob("weights/*/unet/*.safetensors")
            _turn_a_bit(file, place)
            yield _start_damaged(scene, f"a bit turned in the weights' {what}", copy)


def _start_damaged(scene: Scene, what: str, home: str) -> Finding:
    try:
        with scene.server(AESTHETIC_HOME=home) as (server, _):
            client = seen(f"{server.address}/predictions", {"input": scene.fixed})
            same = scene.draws(server)
            image = "the same image" if same else "another image"
            return _finding(what, f"{client}, {image}", settled(server.address), "", holds=False)
    except RuntimeError as error:
        message = str(error)
        return _finding(what, "no answer: setup failed", f"SETUP_FAILED {message[-400:]}", "the right file", holds=True)


def _turn_a_bit(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 64]))


def gpu_full(scene: Scene) -> Iterator[Finding]:
    """Another process takes almost all memory of the GPU, in drawing and in capturing."""
    larger = {**scene.fixed, "num_outputs": 8, "width": 1024, "height": 768}
    for speed, what in (("plain", "drawing"), ("fast", "capturing a new size")):
        with scene.server(AESTHETIC_SPEED=speed) as (server, _):
            client = Client(server.address, scene.fixed)
            expected, taken = client.fixed_file(), _take_gpu()
            message = seen(f"{server.address}/predictions", {"input": larger}, timeout=300)
            health = settled(server.address)
            del taken
            torch.cuda.empty_cache()
            later = seen(f"{server.address}/predictions", {"input": larger}, timeout=300)
            draws = later == "200 succeeded" and client.fixed_file() == expected
            heals = _heals("memory, no restart", draws)
            holds = draws and "failed" in message and "READY" in health
            yield _finding(f"GPU memory full in {what}", f"{message}; with memory: {later}", health, heals, holds=holds)


def _take_gpu(leave: int = 200 * 2**20) -> torch.Tensor:
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(free - leave, 0), dtype=torch.uint8, device="cuda")
