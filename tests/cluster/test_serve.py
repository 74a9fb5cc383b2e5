"""aesthetic serve with two replicas."""

import base64
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aesthetic.request import Request
from aesthetic.service import Service
from script import schema
from tests.cluster.nodes import wait_for, workers
from tests.cluster.test_batch import QUICK, URL
from tests.serving import call

SLOW = {**QUICK, "aesthetic_steps": 100, "num_inference_steps": 500}
QUEUE = 24


@pytest.fixture(scope="module")
def server(address: str, home: Path) -> Iterator[str]:
    """The address of a server, run by its command."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "aesthetic", "serve", f"--address={address}", f"--port={port}"]
    variables = {**os.environ, "AESTHETIC_HOME": str(home)}
    with subprocess.Popen(
        [*command, "--replicas=2", f"--queue={QUEUE}"], env=variables, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("Ready: ") for line in process.stdout)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            assert process.wait(60) == 130  # as after Ctrl-C


def ask(server: str, timeout: float = 60, **inputs: Any) -> tuple[int, dict[str, Any]]:
    return call(f"{server}/predictions", {"input": {**QUICK, **inputs}}, timeout=timeout)


def images(answer: dict[str, Any]) -> list[bytes]:
    assert answer["status"] == "succeeded", answer
    return [base64.b64decode(url.partition(",")[2]) for url in answer["output"]]


def idle(server: str) -> None:
    """Wait until no prediction is taken."""
    wait_for(lambda: call(f"{server}/health-check")[1]["predictions"] == 0)


@pytest.fixture(scope="module")
def expected(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[bytes]]:
    """The files of single predictions, by their seeds."""
    folder = tmp_path_factory.mktemp("single")
    found = {}
    for seed in range(8):
        paths, _ = service.predict(Request(**QUICK, seed=seed, prompt="the cat"), folder)
        found[seed] = [path.read_bytes() for path in paths]
    return found


def test_an_answer_is_cogs(server: str, expected: dict[int, list[bytes]]) -> None:
    status, answer = call(f"{server}/predictions", {"id": "mine", "input": {**QUICK, "seed": 7, "prompt": "the cat"}})
    assert (status, answer["id"]) == (200, "mine")
    assert images(answer) == expected[7]
    assert answer["metrics"]["seed"] == 7
    assert answer["metrics"]["similarity"]["before"] < answer["metrics"]["similarity"]["after"]
    assert set(answer["metrics"]["timing"]) == {"aesthetic", "personalise", "denoise", "decode", "safety", "encode"}
    assert "Seed: 7\n" in answer["logs"]
    _, answer = ask(server, image=URL, prompt="the cat", prompt_strength=0.9)
    assert len(images(answer)) == 1


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"aesthetic_steps": 101}, "aesthetic_steps"),
        ({"aesthetic_steps": "7"}, "aesthetic_steps"),
        ({"width": 100}, "width"),
        ({"scheduler": "nonsense"}, "scheduler"),
        ({"aesthetic_embedding": "nonsense"}, "aesthetic_embedding"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"disable_safety_checker": "yes"}, "disable_safety_checker"),
        ({"n_samples": 9}, "n_samples"),
    ],
)
def test_bad_inputs_are_named(server: str, inputs: dict[str, Any], field: str) -> None:
    status, answer = ask(server, **inputs)
    assert status == 422
    assert [item["loc"] for item in answer["detail"]] == [["body", "input", field]]


def test_bad_requests(server: str) -> None:
    assert call(f"{server}/predictions", b"{")[0] == 400
    assert call(f"{server}/predictions", b"[" * 100_000)[0] == 400
    assert call(f"{server}/predictions", {"input": QUICK, "webhook": "http://127.0.0.1:1"})[0] == 422
    plain = urllib.request.Request(f"{server}/predictions", data=b"{}", headers={"Content-Type": "text/plain"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(plain)
    assert b"send the request with Content-Type: application/json" in refused.value.read()
    for inputs, message in (
        ({"width": 1024, "height": 1024}, "RequestError: width × height must be at most 786432 pixels"),
        ({"image": "/etc/passwd"}, "RequestError: image must be a data: or http(s) URL, not '/etc/passwd'"),
        ({"image": "file:///etc/passwd"}, "RequestError: image must be a data: or http(s) URL"),
        ({"image": "data:,text"}, "ImageError: image: the file is not an image"),
        ({"image": "http://127.0.0.1:1/x"}, "RequestError: image: 'http://127.0.0.1:1/x' can't be read"),
    ):
        status, answer = ask(server, **inputs)
        assert (status, answer["status"]) == (200, "failed")
        assert answer["error"].startswith(message)


def test_a_body_that_is_too_large_is_refused(server: str) -> None:
    host, _, port = server.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        head = ["POST /predictions HTTP/1.1", "Host: x", "Content-Type: application/json", "Content-Length: 200000000"]
        client.sendall("\r\n".join([*head, "", ""]).encode())
        with suppress(ConnectionError):
            for _ in range(105):
                client.sendall(b" " * 2**20)
        assert client.recv(20).startswith(b"HTTP/1.1 413")


def test_the_inputs_are_those_of_cogs_schema(server: str) -> None:
    ours = call(f"{server}/openapi.json")[1]["components"]["schemas"]["Input"]["properties"]
    schemas = schema.openapi_schema()["components"]["schemas"]
    cogs = schemas["Input"]["properties"]
    assert ours.keys() == cogs.keys()
    for name, field in ours.items():
        kind = next(one for one in field.get("anyOf", [field]) if one.get("type") != "null")
        for fact in ("minimum", "maximum", "maxLength"):
            assert kind.get(fact) == cogs[name].get(fact)
        for fact in ("default", "description", "deprecated"):
            assert field.get(fact) == cogs[name].get(fact)
        if name in schemas and name != "aesthetic_embedding":  # which are those of the home
            assert kind["enum"] == schemas[name]["enum"]


def test_the_queue_has_a_bound(server: str) -> None:
    with ThreadPoolExecutor(QUEUE) as clients:

        def hang_up(_: int) -> None:
            with suppress(TimeoutError):
                call(f"{server}/predictions", {"input": SLOW}, timeout=4)

        waiting = [clients.submit(hang_up, i) for i in range(QUEUE)]
        wait_for(lambda: call(f"{server}/health-check")[1]["predictions"] == QUEUE)
        status, answer = ask(server)
        assert status == 503, answer
        assert f"{QUEUE} predictions are waiting" in answer["detail"]
        for one in waiting:
            one.result()
    idle(server)


def test_clients_that_hang_up_and_a_replica_that_dies_change_nothing(
    server: str, expected: dict[int, list[bytes]]
) -> None:
    """100 requests from 16 clients. Those that wait get their image, and no other."""
    numbers = random.Random(1)
    plan = [(i % 8, numbers.random() < 0.3 and numbers.uniform(0.01, 1)) for i in range(100)]

    def client(one: tuple[int, float]) -> str:
        seed, patience = one
        try:
            status, answer = ask(server, prompt="the cat", seed=seed, timeout=patience or 120)
        except TimeoutError:
            return "hung up"
        assert status == 200, answer
        assert images(answer) == expected[seed]
        return "drawn"

    with ThreadPoolExecutor(16) as clients:
        answers = [clients.submit(client, one) for one in plan]
        wait_for(lambda: sum(one.done() for one in answers) > 10)
        os.kill(workers("Drawer")[0].pid, signal.SIGKILL)
        found = [one.result() for one in answers]
    assert all(outcome == "drawn" for outcome, (_, patience) in zip(found, plan, strict=True) if not patience)
    assert "hung up" in found
    idle(server)
    wait_for(lambda: len(workers("Drawer")) == 2)
    assert images(ask(server, prompt="the cat", seed=3)[1]) == expected[3]


def test_a_prediction_whose_client_hung_up_ends(server: str) -> None:
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            call(f"{server}/predictions", {"input": SLOW}, timeout=0.5)
    images(ask(server, prompt="the cat")[1])
    assert time.monotonic() - start < 20  # SLOW takes a minute
