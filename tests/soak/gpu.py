"""A GPU without memory."""

from collections.abc import Iterator

import torch

from tests.soak.client import Client, seen, settled
from tests.soak.report import Finding
from tests.soak.scene import Scene, finding, healed_by


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
            heals = healed_by("memory, no restart", draws)
            holds = draws and "failed" in message and "READY" in health
            yield finding(f"GPU memory full in {what}", f"{message}; with memory: {later}", health, heals, holds=holds)


def _take_gpu(leave: int = 200 * 2**20) -> torch.Tensor:
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(free - leave, 0), dtype=torch.uint8, device="cuda")
