"""The service at Stable Diffusion's full size, with random weights: does it hold.

    python -m tests.full_size [--size full|tiny]

writes a snapshot (3.9 GB with `full`) to a temporary folder, draws through predict.py and through Cog's server, checks
what tests check at toy size, and prints how long it takes to get ready and how far the images of a batch are from the
same ones alone. How fast it draws is for `python -m aesthetic bench` to say.
"""

import argparse
import base64
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops

from aesthetic.pipeline import prompt
from aesthetic.request import Request
from aesthetic.service import Service
from tests import original, snapshot
from tests.original import difference
from tests.test_service import weights

REQUEST = Request(prompt="a painting of a virus monster playing guitar", seed=1, aesthetic_embedding="sac_8plus")


def main() -> None:
    """Write, load, draw, check, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(snapshot.SIZES), default="full")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        _say("writing the snapshot", lambda: snapshot.write_home(home, size=options.size))
        os.environ["AESTHETIC_HOME"] = str(home)
        service = _setup()
        lines = _machine()
        lines += _draw(service, Path(folder))
        lines += _compare(service, home)
        lines += _serve(service, Path(folder))
    print("\n".join(lines))


def _setup() -> Service:
    from predict import Predictor

    command = [sys.executable, "-c", "from predict import Predictor; Predictor().setup()"]
    _say("setup in a process of its own, with imports", lambda: subprocess.run(command, check=True))
    predictor = Predictor()
    _say("setup with all files in the page cache, without imports", predictor.setup)
    service: Service = predictor.service
    return service


def _machine() -> list[str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return [f"machine: {gpu}, torch {torch.__version__}, Python {platform.python_version()}"]


def _draw(service: Service, folder: Path) -> list[str]:
    """The default prediction, several times: one image, one file each time, weights unchanged, files opened."""
    _say("first prediction", lambda: service.predict(REQUEST, folder))
    before = {name: weight.clone() for name, weight in weights(service.model).items()}
    pngs = {service.predict(REQUEST, folder)[0][0].read_bytes() for _ in range(3)}
    assert len(pngs) == 1, "the same request gave different files"
    with Image.open(folder / "output.0.png") as image:
        assert np.asarray(image).std() > 0, "the picture is of one color"
    assert all(torch.equal(weight, before[name]) for name, weight in weights(service.model).items())
    return [f"files opened while drawing: {_opened(lambda: service.predict(REQUEST, folder))}"]


def _opened(action: Callable[[], object]) -> list[str]:
    """The names of all files that Python opens while something runs."""
    names: set[str] = set()
    listening = True

    def hook(event: str, details: tuple[object, ...]) -> None:
        if listening and event == "open":
            names.add(Path(str(details[0])).name)

    sys.addaudithook(hook)  # audit hooks can't be removed
    action()
    listening = False
    return sorted(names)


def _compare(service: Service, home: Path) -> list[str]:
    """Conditioning against the original loop, on this device and on the CPU; a batch against single images."""
    device = service.model.device
    tokens = prompt.tokenize_prompt(service.model.pipeline.tokenizer, REQUEST.prompt, service.model.device).input_ids
    target = service.registry.load("sac_8plus").vector
    steps = service.personalizer(tokens, target.to(device), steps=10, lr=1e-4)
    *_, last = steps
    on_cpu = original.conditioning(original.load_clip(home), tokens.cpu(), target, steps=10, lr=1e-4)
    here = original.conditioning(original.load_clip(home).to(device), tokens, target.to(device), steps=10, lr=1e-4)
    lines = [
        f"conditioning after 10 steps, relative difference to the original loop here: "
        f"{difference(last.conditioning, here):.1e}, on the CPU: {difference(last.conditioning.cpu(), on_cpu):.1e}"
    ]
    batch = service.draw(replace(REQUEST, num_outputs=4)).images
    worst = 0
    means: list[float] = []
    for i, (image, _) in enumerate(batch):
        [(alone, _)] = service.draw(replace(REQUEST, seed=1 + i)).images
        apart = np.asarray(ImageChops.difference(image, alone))
        worst = max(worst, int(apart.max()))
        means.append(float(apart.mean()))
    lines.append(f"a batch of 4 against its pictures alone: mean {statistics.mean(means):.2f}, at most {worst} of 255")
    return lines


def _serve(service: Service, folder: Path) -> list[str]:
    """The same prediction through Cog's server, in a process of its own."""
    ready, prediction = _prediction()
    (folder / "served").mkdir()
    [path], _ = service.predict(REQUEST, folder / "served")
    same = base64.b64decode(prediction["output"][0].partition(",")[2]) == path.read_bytes()
    return [
        f"Cog's server, from its start until it was ready: {ready:.1f} s",
        f"through Cog's server the same file as from predict.py: {same}",
        f"its metrics: {json.dumps(prediction['metrics'])}",
    ]


def _prediction() -> tuple[float, dict[str, Any]]:
    """The seconds until a server is ready, and what it answers to the request."""
    from tests.serving import call, serving

    inputs = {name: value for name, value in asdict(REQUEST).items() if value is not None and name != "ddim_eta"}
    started = time.perf_counter()
    with serving() as address:
        ready = time.perf_counter() - started
        return ready, call(f"{address}/predictions", {"input": inputs})[1]


def _say(what: str, action: Callable[[], object]) -> None:
    started = time.perf_counter()
    action()
    print(f"{what}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
