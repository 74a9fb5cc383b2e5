"""Predictions canceled at random moments: the next one draws the same image, and soon."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aesthetic.request import MAX_AREA, SIZES
from tests.serving import attempt
from tests.soak.client import Client
from tests.soak.predictions import Same
from tests.soak.report import Finding

LATEST = 1.5  # seconds after the request, by which it is canceled
SOON = 5.0  # seconds until the next image


class Cancels:
    """Cancels one prediction after another, and draws the fixed one after each."""

    name = "cancels"

    def __init__(self, client: Client, dice: random.Random, most: Mapping[str, int]) -> None:
        """most: the greatest width."""
        self._client, self._dice, self._most = client, dice, most
        self._same, self._seconds, self._ways = Same(client), list[float](), Counter[str]()

    def step(self) -> None:
        """Cancel the next one."""
        way = self._dice.choice([_cancel, _hang_up])
        name, moment = f"cancel-{len(self._seconds)}", self._dice.uniform(0, LATEST)
        self._ways[way(self._client, name, _slow(self._dice, self._most), moment)] += 1
        started = time.monotonic()
        self._same.again()
        self._seconds.append(time.monotonic() - started)

    def findings(self) -> list[Finding]:
        """What has been found so far."""
        ways = ", ".join(f"{way}: {count}" for way, count in sorted(self._ways.items()))
        worst = max(self._seconds, default=0.0)
        seconds = f"median {statistics.median(self._seconds or [0.0]):.2f}, worst {worst:.2f}"
        soon = Finding(part=self.name, what="s until the next image", facts={"measured": seconds}, holds=worst < SOON)
        return [Finding(part=self.name, what="canceled", facts={"measured": ways}), self._same.finding(self.name), soon]


def _slow(dice: random.Random, most: Mapping[str, int]) -> dict[str, Any]:
    """Inputs that take longer than LATEST, of any size.

    Without files: Cog can stay busy for good when it is canceled while it fetches one.
    """
    sizes = [size for size in SIZES if size <= most["width"]]
    width, height = dice.choice([(w, h) for w in sizes for h in sizes if w * h <= MAX_AREA])
    steps = {"aesthetic_steps": dice.choice([0, 3, 100]), "num_inference_steps": 500}
    return {"prompt": "a dog", "width": width, "height": height, "num_outputs": dice.randint(1, 2), **steps}


def _cancel(client: Client, name: str, inputs: dict[str, Any], moment: float) -> str:
    """Start an asynchronous prediction, and cancel it."""
    url = f"{client.address}/predictions"
    while (status := attempt(url, {"id": name, "input": inputs}, Prefer="respond-async")[0]) == 409:
        time.sleep(0.01)
    time.sleep(moment)
    canceled, _ = attempt(f"{url}/{name}/cancel", {})
    return f"asynchronous ({status}), then POST cancel ({canceled})"


def _hang_up(client: Client, name: str, inputs: dict[str, Any], moment: float) -> str:
    """Start a synchronous prediction, and close the connection."""
    url = f"{client.address}/predictions/{name}"
    try:
        while attempt(url, {"input": inputs}, method="PUT", timeout=moment)[0] == 409:
            time.sleep(0.01)
    except OSError:
        return "synchronous, then closed connection"
    return "synchronous, answered before"
