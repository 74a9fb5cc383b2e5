"""A client that counts every answer, and how it says what it saw."""

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from aesthetic import errors
from tests.serving import attempt, files

# What a failed prediction may say: our errors, and Cog's own where it can't fetch a file.
KNOWN = (*(f"Prediction failed: {name}" for name in errors.__all__ if name.endswith("Error")), "Input validation error")
PATIENCE = 120  # seconds for one answer


class Client:
    """Sends predictions to one server, and counts the answers."""

    def __init__(self, address: str, fixed: dict[str, Any]) -> None:
        """fixed: the inputs of the prediction whose file must always be the same."""
        self.address, self.fixed = address, fixed
        self.counts: Counter[str] = Counter()
        self.unexpected: list[str] = []

    def predict(self, inputs: dict[str, Any], *, put: str | None = None) -> tuple[int, dict[str, Any]]:
        """The answer to a prediction, which is repeated while the server is busy. put: an id, for PUT."""
        url = f"{self.address}/predictions" + (f"/{put}" if put else "")
        until = time.monotonic() + PATIENCE
        while True:
            found = attempt(url, {"input": inputs}, method="PUT" if put else None, timeout=PATIENCE)
            self.count(*found)
            if found[0] != 409:
                return found
            if time.monotonic() > until:
                raise TimeoutError("the server stays busy")
            time.sleep(0.02)

    def count(self, status: int, answer: dict[str, Any]) -> None:
        """Count an answer by its status, and keep it if it is none of those that the API has."""
        kind = str(answer.get("status", "")) if status == 200 else ""
        error = str(answer.get("error", ""))
        known = next((name for name in KNOWN if f"{name}: " in error), None)
        if kind == "failed":
            kind = f"failed, {(known or 'another error').removeprefix('Prediction failed: ')}"
        self.counts[f"{status} {kind}".strip()] += 1
        if status not in (200, 400, 409, 422) or (status == 200 and kind != "succeeded" and known is None):
            self.unexpected.append(said(status, answer))

    def fixed_file(self) -> bytes:
        """The file of the fixed prediction. Raises AssertionError if there is none."""
        [file] = files(self.predict(self.fixed)[1])
        return file


def in_background(pool: ThreadPoolExecutor, url: str, body: object, **options: Any) -> "Future[str]":
    """What a client will see that sends a request now and waits."""
    return pool.submit(seen, url, body, **options)


def seen(url: str, body: object = None, **options: Any) -> str:
    """What a client sees, in a line."""
    try:
        return said(*attempt(url, body, **options))
    except OSError as error:  # urllib's errors are such
        return f"no answer ({getattr(error, 'reason', None) or error!r})"


def said(status: int, answer: dict[str, Any]) -> str:
    """An answer in a line."""
    words = [str(status), answer.get("status", ""), str(answer.get("error") or answer.get("detail") or "")]
    return " ".join(word for word in words if word)[:400]


def health(address: str) -> str:
    """What a supervisor sees at /health-check."""
    try:
        status, answer = attempt(f"{address}/health-check", timeout=10)
    except OSError as error:
        return f"no answer ({getattr(error, 'reason', None) or error!r})"
    return " ".join(filter(None, [str(status), answer["status"], answer.get("user_healthcheck_error", "")]))


def settled(address: str, seconds: float = 30) -> str:
    """Its health once it no longer starts or draws, or after so many seconds."""
    until = time.monotonic() + seconds
    while (found := health(address)).startswith(("200 BUSY", "200 STARTING")) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def setup_error(error: RuntimeError) -> str:
    """What a server said whose setup failed."""
    return str(error.args[0]["logs"]).rpartition("setup failed: ")[2].strip()
