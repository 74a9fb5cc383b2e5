"""Faults of disks: a folder that is removed, one that is full, a file that is damaged."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.serving import data_url
from tests.snapshot import turn_a_bit
from tests.soak.client import in_background, seen, settled, setup_error
from tests.soak.report import Finding
from tests.soak.scene import PART, Scene, finding, healed_by, refusal

TMPFS = 64  # MiB of a disk that gets full
# A server with a small disk of its own, in which Cog keeps its folders, too. No root is needed where the kernel allows
# user namespaces.
SMALL_DISK = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNT = f"""set -e
mount -t tmpfs -o size={TMPFS}m none "$TMPDIR"
mkdir -p "$TMPDIR/coglet" /tmp/coglet
mount --bind "$TMPDIR/coglet" /tmp/coglet
exec "$@"
"""


def folder_removed(scene: Scene) -> Iterator[Finding]:
    """A cleaner of /tmp removes the folder, between predictions and in one."""
    with scene.server() as (server, folder), ThreadPoolExecutor() as pool:
        _empty(folder)
        client = seen(f"{server.address}/predictions", {"input": scene.fixed})
        draws = scene.draws(server)
        heals, health = healed_by("the next prediction", draws), settled(server.address)
        yield finding("temporary folder removed, then a prediction", client, health, heals, holds=draws)
        waiting = in_background(pool, f"{server.address}/predictions", {"input": scene.slow}, timeout=300)
        time.sleep(1)
        _empty(folder)
        client, draws = waiting.result(), scene.draws(server)
        heals, health = healed_by("the next prediction", draws), settled(server.address)
        yield finding("temporary folder removed in a prediction", client, health, heals, holds=draws)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def disk_full(scene: Scene) -> Iterator[Finding]:
    """No space for the image, or for a file that a client sends."""
    what = "disk full, no space for "
    if why_not := refusal(*SMALL_DISK, "mount -t tmpfs none /tmp"):
        yield Finding(part=PART, what=what + "files", facts={"client": f"skipped: {why_not}"})
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
            yield finding(what + name, client, health, healed_by("space, no restart", draws), holds=holds)


def _fill(path: Path) -> None:
    """Write to a file until nothing more fits on its disk."""
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def weights_damaged(scene: Scene) -> Iterator[Finding]:
    """One bit of the UNet's file is turned, in its header and in its numbers."""
    for what, place in (("header", 20), ("numbers", -1000)):
        with tempfile.TemporaryDirectory(prefix="soak-home-") as copy:
            shutil.copytree(scene.home, copy, dirs_exist_ok=True)
            [file] = Path(copy).glob("weights/*/unet/*.safetensors")
            turn_a_bit(file, place)
            yield _start_damaged(scene, f"a bit turned in the weights' {what}", copy)


def _start_damaged(scene: Scene, what: str, home: str) -> Finding:
    try:
        with scene.server(AESTHETIC_HOME=home) as (server, _):
            client = seen(f"{server.address}/predictions", {"input": scene.fixed})
            same = scene.draws(server)
            image = "the same image" if same else "another image"
            return finding(what, f"{client}, {image}", settled(server.address), "", holds=False)
    except RuntimeError as error:
        message = setup_error(error)
        health = f"200 SETUP_FAILED {message}"
        return finding(
            what, "no server that is ready", health, "the right file, and a restart", holds="is damaged" in message
        )
