"""How long `prompt_embeds` takes for both text encoders of Stable Diffusion XL, at full size with random weights.

    python -m tests.pipeline.bench [--repeats 9]

prints the median time, the least and the most, in milliseconds: without steps, which is what any drawing needs; with 10
steps; and with 10 steps and kept copies.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

from aesthetic.benchmark import random_model, roofline
from aesthetic.embeddings import embedding
from aesthetic.models.device import default_device
from aesthetic.pipeline.prompt_embeds import prompt_embeds


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    device = default_device()
    model, keep = random_model.build("sdxl", device), dict[str, Any]()
    targets = [embedding.unit(torch.randn(1, dim)) for dim in (768, 1280)]
    options: dict[str, Any] = {"projection": model.encoder.text_projection.weight.detach()}

    def embed(**others: Any) -> Callable[[], object]:
        return lambda: prompt_embeds(model.pipeline, "the cat", targets, **options, **others)

    ways = {"no steps": embed(steps=0), "10 steps": embed(), "10 steps, kept": embed(keep=keep)}
    for run in ways.values():
        run()  # libraries choose their kernels, and graphs are captured
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            times[name].append(1000 * roofline.seconds(device, run)[0])
    print(torch.cuda.get_device_name() if device.type == "cuda" else device)
    for name, each in times.items():
        print(f"{name}: {statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})")


if __name__ == "__main__":
    main()
