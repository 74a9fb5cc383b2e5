"""How much faster several workers draw than one, and what Ray takes of each image.

    python -m tests.cluster.bench [--workers 1 2] [--images 12] [--repeats 3] [--size demo|full|tiny] [--json FILE]

draws 512 × 512 images on this machine with each number of workers in turn, one GPU each, or one core each without GPUs.
`full` has the shapes of Stable Diffusion 1.5 and random weights (3.9 GB are written first). Images count from when each
worker has drawn one, so that starting, loading and capturing do not. Ray's share is what of the time of one worker is
not spent in predictions.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import snapshot

INPUTS = {"prompt": "the cat", "num_inference_steps": 20, "scheduler": "DPMSolverMultistep"}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=12, help="drawn by each worker")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", choices=["demo", *snapshot.SIZES], default="demo")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        if options.size != "demo":
            os.environ["AESTHETIC_HOME"] = str(snapshot.write_home(Path(folder) / "home", size=options.size))
        model = "demo" if options.size == "demo" else snapshot.MODEL
        found = [
            {"workers": count, **_measure(model, count, options.images)}
            for _ in range(options.repeats)
            for count in options.workers
        ]
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    _show(found)


def _measure(model: str, count: int, images: int) -> dict[str, float]:
    """Images a second by `count` workers, and the share of their time that is not spent in predictions."""
    from aesthetic.cluster.workers import Cluster, work
    from aesthetic.models import checkpoint

    items = work(_draw, range(count * images), model=checkpoint.locate(model), cluster=Cluster(workers=count))
    drawn = [outcome for _, outcome in items if isinstance(outcome, tuple)]
    ends: dict[int, list[float]] = {}
    for worker, _, end in drawn:
        ends.setdefault(worker, []).append(end)
    assert len(ends) == count, f"{len(ends)} of {count} workers drew"
    first, last = max(map(min, ends.values())), max(map(max, ends.values()))
    counted = [(max(start, first), end) for _, start, end in drawn if end > first]
    inside = sum(end - start for start, end in counted)
    return {
        "images/s": len(counted) / (last - first),
        "prediction": statistics.median(end - start for _, start, end in drawn),
        "share of Ray": 1 - inside / (last - first) / count,
    }


def _draw(service: Any, index: int) -> tuple[int, float, float]:
    """Draw an image in a worker, with all that a batch does but the writing: which process, and from when to when."""
    from aesthetic.cluster.files import open_url
    from aesthetic.cluster.prediction import predict

    start = time.time()  # which processes share
    made = predict(service, {**INPUTS, "seed": index}, open_url)
    assert made.error is None, made.error
    return os.getpid(), start, time.time()


def _show(found: list[dict[str, float]]) -> None:
    counts = list(dict.fromkeys(one["workers"] for one in found))
    rates = {count: [one["images/s"] for one in found if one["workers"] == count] for count in counts}
    print("| workers | images/s (median; all) | times those of one | seconds in a prediction | share of Ray |")
    print("|---|---|---|---|---|")
    for count in counts:
        own = [one for one in found if one["workers"] == count]
        seconds, share = (statistics.median(one[name] for one in own) for name in ("prediction", "share of Ray"))
        each = ", ".join(f"{rate:.4g}" for rate in rates[count])
        times = statistics.median(rates[count]) / statistics.median(rates[counts[0]])
        rate = statistics.median(rates[count])
        print(f"| {count:g} | {rate:.4g} ({each}) | {times:.2f} | {seconds:.3f} | {share:.1%} |")


if __name__ == "__main__":
    main()
