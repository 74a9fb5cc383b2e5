"""Predictions over HTTP, on Cog's own server, started as script/serve starts it."""

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aesthetic.images import metadata
from aesthetic.models.loading import Model
from predict import COGLET
from tests import lora
from tests.images.test_user_images import encoded, zipped
from tests.serving import Quiet, call, data_url, files, finished, listening, serving, wait_until_idle, webhook
from tests.snapshot import ROOT

QUICK = {"prompt": "the cat", "width": 128, "height": 128, "num_inference_steps": 3, "aesthetic_steps": 3, "seed": 7}
SLOW = {**QUICK, "aesthetic_steps": 100, "num_inference_steps": 500}


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """A server with the schema that `cog build` would write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AESTHETIC_HOME", str(home))
        with serving() as found:
            yield found


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for temporary files of `bare`."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def bare(home: Path, tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> Iterator[str]:
    """A server without a schema: Cog checks nothing, so that only the package's checks apply."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("predict.py", "aesthetic"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AESTHETIC_HOME", str(home))
        patch.setenv("TMPDIR", str(temporary))
        with serving(folder) as found:
            yield found
    assert not [path for path in temporary.rglob("*") if path.is_file()]
    assert not any((COGLET / name).exists() for name in ("ours", "last"))  # of test_nothing_is_left_…


def draw(address: str, **inputs: Any) -> dict[str, Any]:
    status, prediction = call(f"{address}/predictions", {"input": {**QUICK, **inputs}})
    assert status == 200, prediction
    return prediction


class _HalfAFile(Quiet):
    """Announces a file and sends the first half of it."""

    def do_GET(self) -> None:  # noqa: N802
        self.send_response(200)
        self.send_header("Content-Length", "200000")
        self.end_headers()
        self.wfile.write(b"x" * 100_000)


def test_a_synchronous_prediction(address: str) -> None:
    prediction = draw(address)
    [png] = files(prediction)
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (128, 128)
        assert "Seed: 7" in image.info["parameters"]
    metrics = prediction["metrics"]
    assert metrics["seed"] == 7
    assert metrics["blocked"] == 0
    assert metrics["steps"] == 3
    assert metrics["drift"] > 0
    assert metrics["similarity"]["before"] < metrics["similarity"]["after"]
    for value in (metrics["drift"], *metrics["similarity"].values()):
        assert value == round(value, 4)
    assert all(seconds == round(seconds, 3) for seconds in metrics["timing"].values())
    assert set(metrics["timing"]) == {"aesthetic", "personalise", "denoise", "decode", "safety", "encode"}
    for line in ("Seed: 7", "Personalizing: 100%", "Denoising: 100%", "Similarity to sac_8plus:"):
        assert line in prediction["logs"]


def test_a_sweep_ends_with_its_sheet(address: str) -> None:
    *images, sheet = files(draw(address, aesthetic_sweep="0,3"))
    assert images[1:] == files(draw(address))
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.width > 2 * 256


def test_the_same_request_gives_the_same_file(address: str, bare: str) -> None:
    assert files(draw(address)) == files(draw(address)) == files(draw(bare))


def test_a_blank_seed_is_reported(address: str) -> None:
    inputs = {name: value for name, value in QUICK.items() if name != "seed"}
    _, prediction = call(f"{address}/predictions", {"input": inputs})
    seed = prediction["metrics"]["seed"]
    assert f"Seed: {seed}" in prediction["logs"]
    assert files(draw(address, seed=seed)) == files(prediction)


def test_a_batch_in_order(address: str) -> None:
    batch = files(draw(address, num_outputs=3))
    assert batch == [files(draw(address, seed=7 + i))[0] for i in range(3)]


def test_the_originals_inputs(address: str) -> None:
    old = {"n_samples": 2, "scale": 5, "ddim_steps": 2, "plms": False, "aesthetic_embedding": "gloomcore"}
    inputs = {name: value for name, value in QUICK.items() if name != "num_inference_steps"} | old
    _, prediction = call(f"{address}/predictions", {"input": inputs})
    first, _ = files(prediction)
    recipe = metadata.read_recipe(io.BytesIO(first))  # type: ignore[arg-type]
    assert recipe.request["scheduler"] == "DDIM"
    assert recipe.request["guidance_scale"] == 5
    assert recipe.request["num_inference_steps"] == 2
    assert recipe.aesthetic["name"] == "gloomcore"


def test_an_asynchronous_prediction_with_a_webhook(address: str) -> None:
    with webhook() as (url, events):
        body = {"id": "async", "input": QUICK, "webhook": url, "webhook_events_filter": ["start", "completed"]}
        status, answer = call(f"{address}/predictions", body, Prefer="respond-async")
        assert (status, answer["id"]) == (202, "async")
        assert files(finished(events, "async")) == files(draw(address))


def test_put(address: str) -> None:
    status, prediction = call(f"{address}/predictions/mine", {"input": QUICK}, method="PUT")
    assert (status, prediction["id"]) == (200, "mine")
    assert files(prediction) == files(draw(address))


def test_canceled_predictions_change_nothing(address: str) -> None:
    expected = files(draw(address))
    with webhook() as (url, events):
        for i in range(5):
            body = {"id": f"cancel-{i}", "input": SLOW, "webhook": url}
            status, _ = call(f"{address}/predictions", body, Prefer="respond-async")
            assert status == 202
            time.sleep(0.05 + 0.06 * i)
            call(f"{address}/predictions/cancel-{i}/cancel", {})
            assert finished(events, f"cancel-{i}")["status"] == "canceled"
    assert files(draw(address)) == expected


def test_a_client_that_hangs_up_changes_nothing(address: str) -> None:
    expected = files(draw(address))
    with pytest.raises(TimeoutError, match="timed out"):
        call(f"{address}/predictions", {"input": SLOW}, timeout=0.3)
    wait_until_idle(address)
    assert files(draw(address)) == expected


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"aesthetic_steps": 101}, "aesthetic_steps"),
        ({"aesthetic_steps": "many"}, "aesthetic_steps"),
        ({"width": 100}, "width"),
        ({"scheduler": "nonsense"}, "scheduler"),
        ({"aesthetic_embedding": "nonsense"}, "aesthetic_embedding"),
        ({"seed": -1}, "seed"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"disable_safety_checker": "yes"}, "disable_safety_checker"),
    ],
)
def test_bad_inputs(address: str, bare: str, inputs: dict[str, Any], field: str) -> None:
    """With the schema a 422 that names the field; without it a failed prediction that does, in under a second."""
    status, answer = call(f"{address}/predictions", {"input": {**QUICK, **inputs}})
    assert status == 422
    assert [item["loc"][-1] for item in answer["detail"]] == [field]
    started = time.monotonic()
    status, answer = call(f"{bare}/predictions", {"input": {**QUICK, **inputs}})
    assert time.monotonic() - started < 1
    assert (status, answer["status"]) == (200, "failed")
    assert field.removeprefix("aesthetic_embedding") in answer["error"]
    assert "RequestError: " in answer["error"]


def test_bad_requests(address: str, bare: str) -> None:
    assert call(f"{address}/predictions", b"{")[0] == 400
    assert call(f"{address}/predictions", b"{}", Content_Type="text/plain")[0] in (400, 415)
    _, prediction = call(f"{bare}/predictions", {"input": {**QUICK, "nonsense": 1}})
    assert prediction["status"] == "failed"


def test_checks_beyond_the_schema(address: str) -> None:
    for inputs, message in (
        ({"width": 1024, "height": 1024}, "RequestError: width × height must be at most 786432 pixels"),
        ({"n_samples": 2, "num_outputs": 3}, "RequestError: n_samples=2 contradicts num_outputs=3"),
        (
            {"aesthetic_embedding": "fantasy", "aesthetic_images": data_url(encoded())},
            "RequestError: give only one of aesthetic_embedding and aesthetic_images",
        ),
        ({"aesthetic_embedding_file": data_url(b"text")}, "EmbeddingError: aesthetic_embedding_file: "),
        ({"aesthetic_images": data_url(b"text")}, "ImageError: aesthetic_images: "),
    ):
        prediction = draw(address, **inputs)
        assert prediction["status"] == "failed"
        assert message in prediction["error"]


def test_files_as_data_urls(address: str, home: Path) -> None:
    by_name = files(draw(address, aesthetic_embedding="fantasy"))
    by_file = files(draw(address, aesthetic_embedding_file=data_url((home / "embeddings/fantasy.pt").read_bytes())))
    assert Image.open(io.BytesIO(by_file[0])).tobytes() == Image.open(io.BytesIO(by_name[0])).tobytes()
    noise = encoded(Image.effect_noise((50, 50), 70).convert("RGB"))
    by_image = draw(address, aesthetic_images=data_url(noise))
    by_archive = draw(address, aesthetic_images=data_url(zipped({"a.png": noise})))
    assert files(by_image) == files(by_archive)


def test_from_an_image_with_a_mask(address: str) -> None:
    image, mask = Image.new("RGB", (200, 200), (200, 30, 30)), Image.new("L", (200, 200))
    mask.paste(255, (0, 0, 100, 200))
    urls = {"image": data_url(encoded(image)), "mask": data_url(encoded(mask))}
    [png] = files(draw(address, **urls, prompt_strength=0.7))
    with Image.open(io.BytesIO(png)) as found:
        assert found.size == (128, 128)
        assert found.getpixel((120, 64)) == (200, 30, 30)
        assert found.getpixel((8, 64)) != (200, 30, 30)
    prediction = draw(address, image=data_url(b"text"))
    assert "ImageError: image: the file is not an image" in prediction["error"]


def test_with_a_lora(address: str, model: Model, tmp_path: Path) -> None:
    data = data_url(lora.write(tmp_path / "x", lora.changes(model)).read_bytes())
    plain, changed, off = (
        Image.open(io.BytesIO(files(draw(address, **inputs))[0])).tobytes()
        for inputs in ({}, {"lora": data, "lora_scale": 0.5}, {"lora": data, "lora_scale": 0})
    )
    assert changed != plain == off
    prediction = draw(address, lora=data_url(b"text"))
    assert "CheckpointError: lora: the file is damaged, or not a .safetensors file" in prediction["error"]


def test_the_log_of_a_bad_input_has_no_traceback(address: str) -> None:
    with webhook() as (url, events):
        body = {"id": "bad", "input": {**QUICK, "aesthetic_images": data_url(b"text")}, "webhook": url}
        call(f"{address}/predictions", body, Prefer="respond-async")
        event = finished(events, "bad")
    assert event["status"] == "failed"
    assert "aesthetic_images: the file is neither" in event["error"]
    assert "Traceback" not in event["logs"]


def test_nothing_is_left_in_temporary_folders(bare: str, temporary: Path) -> None:
    upload = data_url(zipped({"a.png": encoded()}))

    def left() -> list[str]:
        return [path.name for path in temporary.rglob("*") if path.is_file()]

    call(f"{bare}/predictions", {"id": "ours", "input": SLOW}, Prefer="respond-async")
    time.sleep(0.2)
    call(f"{bare}/predictions/ours/cancel", {})
    wait_until_idle(bare)
    draw(bare, aesthetic_images=upload, num_outputs=3)
    with listening(_HalfAFile) as url:
        assert draw(bare, aesthetic_images=f"{url}likes.zip")["status"] == "failed"
    draw(bare, aesthetic_images=data_url(b"text"))
    assert left() == []  # the failed prediction wrote nothing, and removed what was left before it
    draw(bare)
    assert left() == ["output.0.png"]  # which is removed at the end: see `bare`
    for folder in temporary.iterdir():  # as a cleaner of /tmp does
        shutil.rmtree(folder)
    assert draw(bare, aesthetic_images=upload)["status"] == "succeeded"
    call(f"{bare}/predictions", {"id": "last", "input": QUICK})
    assert (COGLET / "last").is_dir()


def test_setup_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    monkeypatch.setenv("AESTHETIC_MODEL", str(tmp_path))
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline"}'
    )  # the only file that is read before setup
    with pytest.raises(RuntimeError, match="text_encoder"), serving():
        pass


def test_the_schema_is_served(address: str) -> None:
    _, document = call(f"{address}/openapi.json")
    written = json.loads((ROOT / ".cog" / "openapi_schema.json").read_text())
    assert document["components"]["schemas"]["Input"] == written["components"]["schemas"]["Input"]
