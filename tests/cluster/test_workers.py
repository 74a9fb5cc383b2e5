"""What a worker does with a request, in this process."""

import errno
import os
import pickle
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.serve

from aesthetic.cancellation import Canceled
from aesthetic.cluster import batch, files, prediction, serve, workers
from aesthetic.cluster.files import Folder, fetch, open_url
from aesthetic.cluster.lines import Line
from aesthetic.cluster.prediction import Prediction, predict
from aesthetic.cluster.workers import Cluster, connected
from aesthetic.errors import DrawingError, RequestError, SettingError
from aesthetic.models import checkpoint
from aesthetic.service import Service

QUICK: dict[str, Any] = {
    "prompt": "the cat",
    "width": 128,
    "height": 128,
    "num_inference_steps": 3,
    "scheduler": "DDIM",
}


class Died(BaseException):
    """In place of the end of the process."""


def died(_: int) -> None:
    raise Died


@pytest.mark.parametrize(("begun", "kind"), [(3, str), (4, DrawingError)])
def test_an_item_that_took_three_workers_down_has_failed(
    begun: int, kind: type, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    monkeypatch.setattr(workers, "load", lambda *_: service)
    monkeypatch.setattr(ray, "get", int)
    attempts = SimpleNamespace(begin=SimpleNamespace(remote=lambda _: begun))
    worker = workers._Worker(lambda _, item: item, "model", {}, attempts)
    row = worker({"index": 0, "item": pickle.dumps("drawn")})
    assert type(pickle.loads(row["outcome"])) is kind


def test_a_worker_ends_where_its_device_fails_and_goes_on_where_it_does_not(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    monkeypatch.setattr(os, "_exit", died)
    monkeypatch.setattr(service, "predict", lambda *_: 1 / 0)
    made = predict(service, QUICK, open_url)
    assert (made.error, made.is_final) == ("ZeroDivisionError: division by zero", False)
    monkeypatch.setattr(service, "is_healthy", lambda: False)
    with pytest.raises(Died):
        predict(service, QUICK, open_url)


def test_a_canceled_prediction_is_no_failure(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    def canceled(*_: object) -> None:
        raise Canceled

    monkeypatch.setattr(service, "predict", canceled)
    with pytest.raises(Canceled):
        predict(service, QUICK, open_url)


def test_inputs_are_checked_before_files_are_fetched(service: Service) -> None:
    made = predict(service, {**QUICK, "seed": -1, "image": "data:,"}, lambda _: pytest.fail("fetched"))
    assert made.error == "RequestError: seed must be 0 to 4294967295, not -1"


def test_what_is_drawn_is_final_and_what_is_refused_is_not(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict(service, QUICK, open_url).is_final
    assert not predict(service, {**QUICK, "image": "data:,text"}, open_url).is_final

    def blocked(*_: object) -> None:
        raise DrawingError("the safety checker blocked every image")

    monkeypatch.setattr(service, "predict", blocked)
    assert predict(service, QUICK, open_url).is_final


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    assert fetch("lora", "data:,1234567890", tmp_path, open_url).read_bytes() == b"1234567890"
    with pytest.raises(RequestError, match="lora is larger than 10 bytes"):
        fetch("lora", "data:,12345678901", tmp_path, open_url)


def test_a_cluster_that_is_not_there_is_named_at_once() -> None:
    cluster = Cluster(address="127.0.0.1:1")
    with pytest.raises(SettingError, match=r"Ray can't be reached at 127\.0\.0\.1:1: .*refused"), connected(cluster):
        pytest.fail("connected")


ANSWERS = {
    "junk": b"hello\r\n\r\n",
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "ftp": b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\nContent-Length: 0\r\n\r\n",
    "file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
}


@contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """The URL of a server that answers once, a piece every tenth of a second."""

    def answer() -> None:
        with server.accept()[0] as client:
            client.recv(10_000)
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        thread.submit(answer)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x"


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_bad_answer_is_an_error_of_the_input(kind: str, tmp_path: Path) -> None:
    with answering(ANSWERS[kind]) as url, pytest.raises(RequestError, match=r"^image"):
        fetch("image", url, tmp_path, open_url)


def test_a_slow_server_does_not_hold_up_a_cancel_and_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[None] = []
    monkeypatch.setattr(files, "check", lambda: checks.append(None))
    slow = (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", *[b"a"] * 4)
    with answering(*slow) as url:
        assert fetch("image", url, tmp_path, open_url).read_bytes() == b"aaaa"
    assert len(checks) > 1
    monkeypatch.setattr(files, "LONGEST", 0)
    with answering(*slow) as url, pytest.raises(RequestError, match="image took longer than 0 seconds"):
        fetch("image", url, tmp_path, open_url)


def test_no_image_of_another_line_is_left_and_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    out, line = Folder(str(tmp_path)), Line(id="a", inputs={}, digest="1")
    drawn = iter([Prediction(images={"0.png": b"old", "1.png": b"old"}, metrics={"seed": 1}, is_final=True)])
    monkeypatch.setattr(batch, "predict", lambda *_: next(drawn))
    batch._draw(out, out, service, line)
    assert sorted(out.names("images/a")) == ["0.png", "1.png"]
    drawn = iter([Prediction(images={"0.webp": b"new"}, metrics={"seed": 1}, is_final=True)])
    batch._draw(out, out, service, replace(line, digest="2"))
    assert out.names("images/a") == ["0.webp"]
    monkeypatch.setattr(Folder, "write", full)
    drawn = iter([Prediction(images={"0.webp": b"new"}, metrics={"seed": 1})])
    with pytest.raises(SettingError, match=r"can't be written to \(\[Errno 28\] No space left on device"):
        batch._draw(out, out, service, replace(line, digest="3"))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_why_no_replica_could_start_is_said(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def failed(*_: object, **__: object) -> None:
        raise RuntimeError("Deploying application aesthetic failed")

    reason = SimpleNamespace(message="Traceback\n  ...\naesthetic.errors.SettingError: AESTHETIC_SPEED must be")
    status = SimpleNamespace(applications={"aesthetic": SimpleNamespace(deployments={"Drawer": reason})})
    for name, value in {"start": lambda **_: 0, "shutdown": lambda: 0, "run": failed, "status": lambda: status}.items():
        monkeypatch.setattr(ray.serve, name, value)
    monkeypatch.setattr(serve, "connected", nullcontext)
    monkeypatch.setattr(serve, "shares", lambda _: (1, {}))
    address, model = serve.Address(host="", port=1, replicas=None, queue=1), checkpoint.locate(None, home / "weights")
    with pytest.raises(SettingError, match=r"no replica could start: .*AESTHETIC_SPEED must be"):  # noqa: SIM117
        with serve.serving(address, model=model, cluster=Cluster()):
            pytest.fail("serving")


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "FILE:///etc/passwd", "x", "http://[", "data:x"]
)
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^image"):
        fetch("image", url, tmp_path, open_url)


def test_a_folder_is_a_path_or_a_url(tmp_path: Path) -> None:
    for place in (str(tmp_path / "new"), (tmp_path / "new").as_uri()):
        folder = Folder(place)
        folder.write("a/b.txt", b"text")
        assert folder.read("a/b.txt") == b"text"
        assert folder.names("a") == ["b.txt"]
        assert folder.local == tmp_path / "new"
    assert folder.names("nothing") == []
    with pytest.raises(FileNotFoundError):
        folder.read("nothing")
    with pytest.raises(RequestError, match="neither a path nor a URL that pyarrow knows"):
        Folder("nonsense://bucket")
    assert Folder("s3://bucket/out?region=us-east-1").local is None


def test_files_of_inputs_are_all_fetched() -> None:
    assert set(prediction.FILES) == {"aesthetic_embedding_file", "aesthetic_images", "image", "mask", "lora"}
