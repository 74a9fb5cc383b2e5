"""Predictions of every kind, one after another: what they are answered, and what the server then takes."""

import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from tests.serving import Server, attempt, files
from tests.soak.client import Client
from tests.soak.inputs import Inputs, is_image
from tests.soak.report import Finding
from tests.soak.usage import Usage, trend, usage

# Of all samples; allocators and libraries grow until they have met the largest request of each kind.
WARM_UP = 0.25
FIXED_EVERY = 20  # predictions, of which the next one is the fixed one
FEWEST = 300  # samples of a trend that must not rise; memory takes hundreds of predictions to settle


class Predictions:
    """Makes one prediction after another, and measures the server after each."""

    name = "predictions"

    def __init__(self, client: Client, inputs: Inputs, server: Server, folders: list[Path]) -> None:
        """folders: those that the server may write to."""
        self._client, self._inputs, self._server, self._folders = client, inputs, server, folders
        self._samples: list[Usage] = []
        self._same = Same(client)

    def step(self) -> None:
        """Make the next one."""
        if len(self._samples) % FIXED_EVERY == 0:
            self._same.again()
        else:
            self._predict(len(self._samples))
        self._samples.append(usage(self._server, self._folders))

    def findings(self) -> list[Finding]:
        """What has been found so far."""
        return [self._answers(), self._same.finding(self.name), *_trends(self._samples)]

    def _predict(self, index: int) -> None:
        """One random prediction; with every seventh, another client tries at the same time."""
        other = threading.Thread(target=self._try, args=(self._inputs.draw(),))
        if index % 7 == 0:
            other.start()
        put = f"soak-{index}" if index % 5 == 0 else None
        status, answer = self._client.predict(self._inputs.draw(), put=put)
        if index % 7 == 0:
            other.join()
        if status == 200 and answer["status"] == "succeeded" and not all(map(is_image, files(answer))):
            self._client.unexpected.append("an image of one color")

    def _try(self, inputs: dict[str, object]) -> None:
        self._client.count(*attempt(f"{self._client.address}/predictions", {"input": inputs}))

    def _answers(self) -> Finding:
        counts = ", ".join(f"{kind}: {number}" for kind, number in sorted(self._client.counts.items()))
        unexpected = self._client.unexpected
        facts = {"measured": f"of {len(self._samples)}: {counts}", "unexpected": "; ".join(unexpected[:5])}
        return Finding(part=self.name, what="answers", facts=facts, holds=not unexpected)


class Same:
    """Draws the fixed prediction again and again, and compares its bytes with those of the first time."""

    def __init__(self, client: Client) -> None:
        self._client, self._expected = client, client.fixed_file()
        self.times = self.different = 0

    def again(self) -> None:
        """Draw it once more."""
        self.times += 1
        self.different += self._client.fixed_file() != self._expected

    def finding(self, part: str) -> Finding:
        """Whether all were the same."""
        facts = {"measured": f"{self.times - self.different} of {self.times}"}
        return Finding(part=part, what="fixed prediction with the same bytes", facts=facts, holds=not self.different)


def _trends(samples: list[Usage]) -> Iterator[Finding]:
    for spec in fields(Usage):
        values = [getattr(one, spec.name) for one in samples]
        if spec.name == "gpu_bytes" and not any(values):  # no GPU
            continue
        unit = 2**20 if spec.name.endswith("bytes") else 1
        name = spec.name.replace("_bytes", ", MiB").replace("gpu", "memory of the GPU")
        yield _trend(name, [value / unit for value in values])


def _trend(name: str, values: list[float]) -> Finding:
    steady = values[round(len(values) * WARM_UP) :]
    facts = {"measured": f"{values[0]:.1f} → {values[-1]:.1f}, at most {max(values):.1f}"}
    holds = None
    if len(steady) >= 3:
        line = trend(steady)
        facts["per 1,000 predictions [95 %]"] = f"{line.rise:+.2f} [{line.low:+.2f}, {line.high:+.2f}]"
        holds = line.low <= 0 if len(steady) >= FEWEST else None
    series = [round(value, 2) for value in values[:: 1 + len(values) // 100]]
    return Finding(part=Predictions.name, what=name, facts=facts, holds=holds, series=series)
