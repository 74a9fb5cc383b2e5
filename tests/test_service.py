"""The whole of a prediction, in one process."""

import copy
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.hooks import group_offloading
from diffusers.models import modeling_utils
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from aesthetic.cancellation import Canceled
from aesthetic.embeddings import embedding
from aesthetic.errors import AestheticError, CheckpointError, DrawingError, EmbeddingError, ImageError, RequestError
from aesthetic.images import metadata
from aesthetic.images.metadata import read_recipe
from aesthetic.models.clip import Vision
from aesthetic.models.loading import Model
from aesthetic.pipeline import prompt, sampling, target
from aesthetic.pipeline.conditioning import condition
from aesthetic.request import Request
from aesthetic.service import Service
from tests import original, snapshot
from tests.canceling import cancel
from tests.images.test_user_images import encoded, zipped
from tests.original import difference
from tests.snapshot import CLIP, MODEL, turn_a_bit


def weights(model: Model) -> dict[str, Tensor]:
    """All weights of all loaded modules."""
    parts = {"encoder": model.encoder, **model.pipeline.components}
    if model.vision is not None:
        parts["vision"] = model.vision._model
    return {
        f"{part}.{name}": weight
        for part, module in parts.items()
        if isinstance(module, torch.nn.Module)
        for name, weight in module.state_dict().items()
    }


@pytest.fixture
def unchanged(model: Model) -> Iterator[None]:
    """Every weight is, to the bit, what it was before the test."""
    before = copy.deepcopy(weights(model))
    yield
    after = weights(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def png(service: Service, request: Request, folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    paths, _ = service.predict(request, folder)
    return paths[0].read_bytes()


@pytest.fixture
def plain(home: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(home / "weights" / MODEL, variant="fp16")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_similarity_before_and_after_is_reported(service: Service, quick: Request) -> None:
    metrics = service.draw(quick).metrics
    assert -1 <= metrics["similarity.before"] < metrics["similarity.after"] <= 1
    assert not [name for name in service.draw(replace(quick, aesthetic_steps=0)).metrics if "similarity" in name]


def test_without_steps_it_is_plain_diffusers(service: Service, plain: StableDiffusionPipeline, quick: Request) -> None:
    request = replace(quick, aesthetic_steps=0, scheduler="PNDM", negative_prompt="the dog", num_outputs=2)
    latents = sampling.starting_noise(service.model, request, sampling.generators(request))
    for i, (ours, _) in enumerate(service.draw(request).images):
        theirs = plain(
            "the cat",
            negative_prompt="the dog",
            latents=latents[i : i + 1],
            width=128,
            height=128,
            num_inference_steps=3,
        ).images[0]
        assert ours.tobytes() == theirs.tobytes()


def test_with_steps_equals_plain_diffusers_on_the_originals_conditioning(
    service: Service,
    plain: StableDiffusionPipeline,
    clip: CLIPModel,
    quick: Request,
) -> None:
    target = service.registry.load("sac_8plus").vector
    tokens = plain.tokenizer("the cat", padding="max_length", return_tensors="pt").input_ids
    theirs = original.conditioning(clip, tokens, target, steps=3, lr=1e-4)
    start, [end] = condition(service.model, service.personalizer, quick, target)
    ours = end.conditioning
    assert difference(ours.positive, theirs) <= 1e-5
    assert start.similarity is not None
    assert end.similarity is not None
    assert start.similarity < end.similarity
    # The untouched encoder encodes the negative prompt.
    with torch.no_grad():
        assert torch.equal(ours.negative, plain.encode_prompt("", "cpu", 1, False)[0])


@pytest.mark.usefixtures("unchanged")
def test_each_image_of_a_batch_equals_the_image_drawn_alone(service: Service, quick: Request) -> None:
    for scheduler in ("DDIM", "K_EULER_ANCESTRAL"):  # the second draws more noise on the way
        request = replace(quick, scheduler=scheduler, num_outputs=3)
        batch = service.draw(request).images
        for i, (image, recipe) in enumerate(batch):
            [(alone, same)] = service.draw(replace(request, seed=7 + i, num_outputs=1)).images
            assert image.tobytes() == alone.tobytes()
            assert recipe == same
        assert len({image.tobytes() for image, _ in batch}) == 3


def test_the_aesthetic_changes_the_image(service: Service, quick: Request) -> None:
    strong = replace(quick, aesthetic_lr=0.01)
    pictures = {
        service.draw(request).images[0][0].tobytes()
        for request in (
            replace(quick, aesthetic_steps=0),
            strong,
            replace(strong, aesthetic_embedding="fantasy"),
        )
    }
    assert len(pictures) == 3


FRESH = """
import sys

def no_network(event, details):
    if event.startswith("socket.connect") or event == "socket.getaddrinfo":
        raise AssertionError("something reached for the network")

sys.addaudithook(no_network)
from pathlib import Path
from aesthetic.images.metadata import read_recipe
from aesthetic.service import Service
from aesthetic.pipeline.conditioning import condition
Service.load().predict(read_recipe(Path(sys.argv[1])).rebuild(), Path(sys.argv[2]))
"""


@pytest.mark.usefixtures("unchanged")
def test_after_any_prediction_the_next_equals_that_of_a_fresh_process(
    service: Service, quick: Request, home: Path, tmp_path: Path
) -> None:
    first = png(service, quick, tmp_path / "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "is_unsafe", lambda *_: True)
        with pytest.raises(DrawingError):
            service.draw(replace(quick, aesthetic_lr=0.1))
    canceled = sum(cancel(service, replace(quick, aesthetic_steps=50, aesthetic_lr=0.1)) for _ in range(10))
    assert canceled > 2
    assert png(service, quick, tmp_path / "next") == first
    (tmp_path / "fresh").mkdir()
    command = [sys.executable, "-c", FRESH, str(tmp_path / "first" / "output.0.png"), str(tmp_path / "fresh")]
    subprocess.run(
        command, cwd=snapshot.ROOT, env={**os.environ, "AESTHETIC_HOME": str(home)}, check=True, capture_output=True
    )
    assert (tmp_path / "fresh" / "output.0.png").read_bytes() == first


def test_blocked_images_are_left_out(
    service: Service, quick: Request, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request = replace(quick, num_outputs=2)
    whole = service.draw(request)
    first = sampling.checker_pixels(service.model, whole.images[0][0])
    monkeypatch.setattr(sampling, "is_unsafe", lambda _, pixels: torch.equal(pixels, first))
    drawing = service.draw(request)
    assert drawing.blocked == 1
    assert "blocked image 0" in caplog.text
    [(image, recipe)] = drawing.images
    assert image.tobytes() == whole.images[1][0].tobytes()
    assert recipe.request["seed"] == 8


def test_a_blocked_image_is_not_written(
    service: Service, quick: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = iter([True, False])
    monkeypatch.setattr(sampling, "is_unsafe", lambda *_: next(flags))
    paths, _ = service.predict(replace(quick, num_outputs=2), tmp_path)
    assert paths == list(tmp_path.iterdir())
    assert [read_recipe(path).request["seed"] for path in paths] == [8]


def test_the_safety_checker_is_called_and_can_be_disabled(service: Service, quick: Request) -> None:
    checker = service.model.pipeline.safety_checker
    thresholds = checker.concept_embeds_weights.data
    checker.concept_embeds_weights.data = torch.full_like(thresholds, -2)  # so that every image is blocked
    try:
        with pytest.raises(DrawingError, match="the safety checker blocked every image: try another prompt"):
            service.draw(quick)
        assert len(service.draw(replace(quick, disable_safety_checker=True)).images) == 1
    finally:
        checker.concept_embeds_weights.data = thresholds


def test_an_image_that_overflows_is_decoded_again_in_fp32(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(2, 4, 16, 16)
    expected = list(sampling.decode(model, latents))
    vae, calls = model.pipeline.vae, []
    whole = type(vae).decode

    def overflowing(self: object, latent: Tensor, **options: object) -> object:
        calls.append(self)
        image = whole(self, latent, **options)
        return (image[0] * float("inf"),) if self is vae and len(calls) == 1 else image

    monkeypatch.setattr(type(vae), "decode", overflowing)
    pictures = list(sampling.decode(model, latents))
    assert [one is vae for one in calls] == [True, False, True]
    for ours, theirs in zip(pictures, expected, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


def test_images_that_overflow_are_left_out(
    service: Service, quick: Request, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request = replace(quick, num_outputs=3)
    latents = torch.randn(3, 4, 16, 16)
    latents[1] = float("nan")
    monkeypatch.setattr(sampling, "denoise", lambda *_: latents)
    drawing = service.draw(request)
    assert [recipe.request["seed"] for _, recipe in drawing.images] == [7, 9]
    assert drawing.blocked == 0
    assert "Image 1 overflowed and is left out" in caplog.text
    latents[:] = float("nan")
    with pytest.raises(DrawingError, match="the denoising overflowed and left no image"):
        service.draw(request)


def test_truncation_of_either_prompt_is_logged(
    service: Service, quick: Request, caplog: pytest.LogCaptureFixture
) -> None:
    service.draw(replace(quick, prompt="cat " * 80, negative_prompt="dog " * 80))
    assert "The prompt is longer than CLIP can read. Truncated: cat" in caplog.text
    assert "The negative prompt is longer than CLIP can read. Truncated: dog" in caplog.text


def test_messages_do_not_name_temporary_files(service: Service, quick: Request, tmp_path: Path) -> None:
    (tmp_path / "tmpabc").write_text("text")
    for name in ("aesthetic_embedding_file", "aesthetic_images"):
        given: dict[str, Any] = {name: tmp_path / "tmpabc"}
        with pytest.raises(AestheticError, match=f"{name}: the file is neither") as error:
            service.draw(replace(quick, **given))
        assert "tmpabc" not in str(error.value)


def test_a_diverged_personalization_is_an_error(
    service: Service, quick: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = service.personalizer

    def diverging(*inputs: Tensor, **options: float) -> Iterator[object]:
        for step in steps(*inputs, **options):  # type: ignore[arg-type]
            yield replace(step, conditioning=step.conditioning * float("nan"))

    monkeypatch.setattr(service, "personalizer", diverging)
    with pytest.raises(DrawingError, match=r"diverged by step 3: lower aesthetic_lr \(0\.0001\) or"):
        service.draw(quick)


def test_a_long_prompt_is_truncated_and_the_rest_is_logged(
    service: Service, quick: Request, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service.draw(replace(quick, prompt="cat " * 75 + "dog"))
    assert "The prompt is longer than CLIP can read. Truncated: dog" in caplog.text
    assert "Seed: 7" in caplog.text


def test_an_aesthetic_from_a_file(service: Service, quick: Request, home: Path, tmp_path: Path) -> None:
    path = home / "embeddings" / "sac_8plus.pt"
    by_name, by_file = (
        service.draw(replace(quick, **source))
        for source in ({"aesthetic_embedding": "sac_8plus"}, {"aesthetic_embedding_file": path})
    )
    assert by_name.images[0][0].tobytes() == by_file.images[0][0].tobytes()
    facts = by_file.images[0][1].aesthetic
    assert facts == {"name": snapshot.sha256(path)[:12], "source": "file", "sha256": snapshot.sha256(path)}
    assert by_name.images[0][1].aesthetic["name"] == "sac_8plus"


def test_an_aesthetic_from_images(service: Service, quick: Request, tmp_path: Path) -> None:
    noise = [Image.effect_noise((50, 40), 60 + i).convert("RGB") for i in range(3)]
    (tmp_path / "upload").write_bytes(zipped({f"{i}.png": encoded(image) for i, image in enumerate(noise)}))
    request = replace(quick, aesthetic_images=tmp_path / "upload")
    aesthetic = target.requested_aesthetic(request, service.model, service.registry)
    assert aesthetic is not None
    vision = service.model.vision
    assert vision is not None
    expected = vision.features([vision.prepare(image) for image in noise]).mean(dim=0, keepdim=True)
    torch.testing.assert_close(aesthetic.vector, embedding.unit(expected))
    drawing = service.draw(request)
    assert drawing.images[0][1].aesthetic["source"] == "pictures"


def test_bad_aesthetics_are_refused_before_any_model_work(
    service: Service, quick: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "encode", lambda *_: pytest.fail("the model worked"))
    monkeypatch.setattr(Vision, "features", lambda *_: pytest.fail("the model worked"))
    torch.save(torch.randn(768), tmp_path / "wide.pt")
    embedding.save_aesthetic(tmp_path / "other", torch.randn(1, 24), {"space": "elsewhere"})
    (tmp_path / "bad.zip").write_bytes(zipped({"a.png": encoded(), "b.png": b"text"}))
    for error, message, source in (
        (RequestError, "there is no aesthetic 'x'", {"aesthetic_embedding": "x"}),
        (EmbeddingError, "aesthetic_embedding_file: there is no file", {"aesthetic_embedding_file": tmp_path / "x"}),
        (EmbeddingError, "has 768 dimensions", {"aesthetic_embedding_file": tmp_path / "wide.pt"}),
        (EmbeddingError, "was made in the CLIP space 'elsewhere'", {"aesthetic_embedding_file": tmp_path / "other"}),
        (ImageError, "aesthetic_images: b.png is not an image", {"aesthetic_images": tmp_path / "bad.zip"}),
    ):
        with pytest.raises(error, match=message):
            service.draw(replace(quick, **source))


def test_without_steps_no_aesthetic_is_needed(service: Service, quick: Request, tmp_path: Path) -> None:
    drawing = service.draw(replace(quick, aesthetic_steps=0, aesthetic_embedding_file=tmp_path / "nothing"))
    assert drawing.similarity is None
    assert drawing.images[0][1].aesthetic == {}


def test_without_guidance(service: Service, plain: StableDiffusionPipeline, quick: Request) -> None:
    request = replace(quick, aesthetic_steps=0, guidance_scale=1.0, scheduler="PNDM")
    theirs = plain(
        "the cat",
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7),
        width=128,
        height=128,
        num_inference_steps=3,
    ).images[0]
    assert service.draw(request).images[0][0].tobytes() == theirs.tobytes()


def test_a_recipe_draws_the_same_image(service: Service, quick: Request, tmp_path: Path) -> None:
    paths, drawing = service.predict(replace(quick, seed=None, num_outputs=2), tmp_path)
    assert [path.name for path in paths] == ["output.0.png", "output.1.png"]
    assert drawing.request.seed is not None
    (tmp_path / "again").mkdir()
    for path in paths:
        request = metadata.read_recipe(path).rebuild()
        assert png(service, request, tmp_path / "again") == path.read_bytes()


def test_every_stage_is_timed(service: Service, quick: Request, tmp_path: Path) -> None:
    _, drawing = service.predict(quick, tmp_path)
    assert set(drawing.seconds) == {"aesthetic", "personalise", "denoise", "decode", "safety", "encode"}
    assert all(seconds > 0 for seconds in drawing.seconds.values())


def test_files_are_in_the_order_of_the_images_whichever_is_encoded_first(
    service: Service, quick: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = metadata.encode

    def unhurried(image: Image.Image, recipe: metadata.Recipe) -> bytes:
        time.sleep(0.1 if recipe.request["seed"] == 7 else 0)  # the first one is the last to be ready
        return encode(image, recipe)

    monkeypatch.setattr(metadata, "encode", unhurried)
    for request in (replace(quick, num_outputs=3), replace(quick, aesthetic_sweep="0,2", output_format="webp")):
        paths, drawing = service.predict(request, tmp_path)
        names = [f"output.{i}.{request.output_format}" for i in range(3)]
        assert [path.name for path in paths] == names
        for path, picture in zip(paths, drawing.images, strict=False):
            assert path.read_bytes() == encode(*picture)


def test_an_image_is_encoded_while_the_next_is_decoded(
    service: Service, quick: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded_one, decode = metadata.encode, threading.Event(), sampling.decode

    def telling(image: Image.Image, recipe: metadata.Recipe) -> bytes:
        encoded_one.set()
        return encode(image, recipe)

    def waiting(model: Model, latents: Tensor) -> Iterator[Tensor | None]:
        first, second = decode(model, latents)
        yield first
        assert encoded_one.wait(60)
        yield second

    monkeypatch.setattr(metadata, "encode", telling)
    monkeypatch.setattr(sampling, "decode", waiting)
    service.predict(replace(quick, num_outputs=2), tmp_path)


def test_a_prediction_does_not_search_all_modules(
    service: Service, quick: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a dtype, a device or offloading, as diffusers does for milliseconds in which a GPU has nothing to do."""
    Image.new("RGB", (128, 128)).save(tmp_path / "image.png")
    for module, name in (
        (modeling_utils, "get_parameter_dtype"),
        (modeling_utils, "get_parameter_device"),
        (group_offloading, "_get_group_onload_device"),
    ):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("all modules were searched"))
    service.draw(quick)
    assert "image" in service.draw(replace(quick, image=tmp_path / "image.png")).seconds


def test_an_error_in_encoding_is_raised(
    service: Service, quick: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> bytes:
        raise OSError("encoder error")

    monkeypatch.setattr(metadata, "encode", failing)
    with pytest.raises(OSError, match="encoder error"):
        service.predict(quick, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_canceled_prediction_starts_no_more_work(
    service: Service, quick: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def canceled(model: Model, latents: Tensor) -> Iterator[Tensor | None]:
        yield next(sample_decode(model, latents))
        raise Canceled

    sample_decode, before = sampling.decode, threading.active_count()
    monkeypatch.setattr(sampling, "decode", canceled)
    with pytest.raises(Canceled):
        service.predict(replace(quick, num_outputs=2), tmp_path)
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [20, -1000])  # in its header, and in its numbers
@pytest.mark.parametrize("name", [f"{MODEL}/unet/diffusion_pytorch_model.fp16", f"{CLIP}/model"])
def test_a_file_with_one_wrong_bit_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: int
) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("AESTHETIC_HOME", str(tmp_path))
    turn_a_bit(tmp_path / "weights" / f"{name}.safetensors", place)
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is damaged: its sha256 .* run script/download"):
        Service.load()


def test_a_full_gpu_says_what_to_lower(
    service: Service, quick: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(service, "draw", fail)
    with pytest.raises(
        DrawingError, match=r"memory is full \(CUDA out of memory\): lower num_outputs, width or height"
    ):
        service.predict(quick, tmp_path)
