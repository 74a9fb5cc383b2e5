"""Pictures from running Cog servers, over HTTP: one prediction at a time for each server, several servers at once.

What is asked for is the caller's to say. Nothing is known here of aesthetics, judges or files.
"""

import base64
import binascii
import io
import json
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from PIL import Image

Job = TypeVar("Job")
Result = TypeVar("Result")

__all__ = ["PredictionError", "model_of", "predict", "share"]

DEFAULT_SERVER = "http://127.0.0.1:5000"  # where script/serve listens
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, *(1.0 for _ in range(120)))  # seconds between tries of a busy server
TIMEOUT = 3600.0  # seconds; a batch of large pictures takes minutes on a CPU


class PredictionError(Exception):
    """A server did not draw what it was asked to; the message says which one and why."""


def predict(server: str, inputs: dict[str, Any]) -> list[Image.Image]:
    """The pictures of one prediction, in order. Raises PredictionError with what the server said."""
    prediction = json.loads(_post(server, json.dumps({"input": inputs}).encode()))
    if prediction["status"] != "succeeded":
        raise PredictionError(f"{server}: {prediction.get('error') or 'the prediction ' + prediction['status']}")
    try:
        return [_picture(url) for url in prediction["output"]]
    except (OSError, binascii.Error) as error:
        raise PredictionError(f"{server} sent something else than pictures: {error}") from error


def model_of(picture: Image.Image) -> str:
    """The name and revision of the model that drew a picture, from its recipe; blank if it carries none."""
    recipe = json.loads(picture.info.get("aesthetic", "{}"))
    return " ".join(filter(None, (recipe.get("model", {}).get(key, "") for key in ("name", "revision"))))


def share(
    servers: Sequence[str], jobs: Iterable[Job], work: Callable[[str, Job], Result]
) -> Iterator[tuple[Job, Result]]:
    """Do the jobs, each with whichever server is free, and yield them as they are done.

    The first that fails raises its error here, once those under way have ended. Hardly any more are begun.
    """
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for server in servers:
        free.put(server)

    def do(job: Job) -> tuple[Job, Result]:
        server = free.get()
        try:
            return job, work(server, job)
        finally:
            free.put(server)

    with ThreadPoolExecutor(len(servers)) as pool:
        try:
            for future in as_completed([pool.submit(do, job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _post(server: str, body: bytes) -> bytes:
    """POST a prediction. Cog is busy (409) for an instant after each one, and for ever if its worker has died."""
    request = urllib.request.Request(
        f"{server.rstrip('/')}/predictions", data=body, headers={"Content-Type": "application/json"}
    )
    for pause in PAUSES:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            complaint = error.read().decode(errors="replace")
            if error.code != 409:
                raise PredictionError(f"{server} answered {error.code}: {complaint}") from error
        except OSError as error:
            raise PredictionError(f"{server} can't be reached: {error}") from error
        time.sleep(pause)
    raise PredictionError(f"{server} has been busy for {sum(PAUSES):.0f} seconds: its worker may have died")


def _picture(url: str) -> Image.Image:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        image.load()  # which reads texts that stand after the pixels too
        drawn = image.convert("RGB")
        drawn.info = dict(image.info)
    return drawn
