"""Stable Diffusion 2.x: the same code, with its own CLIP space; missing parts are named."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from aesthetic.benchmark import random_model
from aesthetic.embeddings import embedding
from aesthetic.embeddings.registry import Registry
from aesthetic.errors import CheckpointError, EmbeddingError, RequestError
from aesthetic.images import init_image
from aesthetic.models import checkpoint, clip, loading
from aesthetic.models.loading import Model
from aesthetic.pipeline import img2img, prompt, schedulers
from aesthetic.pipeline.prompt_embeds import prompt_embeds
from aesthetic.request import SCHEDULERS, Request
from aesthetic.service import Service
from tests import lora, original
from tests.models import sd2
from tests.pipeline.test_schedulers import PLAIN
from tests.snapshot import ROOT, write_json

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=list(sd2.SCHEDULERS))
def folder(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot that predicts noise, as the base models, or velocity, as those of 768 pixels."""
    return sd2.write(home, tmp_path_factory.mktemp("second") / request.param, prediction=request.param)


@pytest.fixture(scope="module")
def service(folder: Path, home: Path) -> Service:
    model = loading.load(checkpoint.locate(str(folder), home / "weights"), CPU)
    return Service(model, Registry(home / "embeddings"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder, variant="fp16", safety_checker=None, image_encoder=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def liked(service: Service, quick: Request, tmp_path: Path) -> Request:
    """Steps towards an aesthetic of the model's own space."""
    notes = {"space": service.model.clip_space}
    embedding.save_aesthetic(tmp_path / "mine.safetensors", torch.randn(1, sd2.DIM), notes)
    return replace(quick, aesthetic_embedding_file=tmp_path / "mine.safetensors", aesthetic_lr=0.01)


def drawn(service: Service, request: Request) -> bytes:
    [(image, _)] = service.draw(request).images
    return image.tobytes()


def test_it_is_what_is_published_beside_a_projection(service: Service, folder: Path) -> None:
    model = service.model
    assert model.scheduler["prediction_type"] == folder.name
    assert model.pipeline.unet.config.attention_head_dim == [1, 2, 4, 4]
    assert model.pipeline.tokenizer.pad_token_id == 0
    assert model.pipeline.safety_checker is None
    assert model.dim == sd2.DIM
    assert model.clip_space.startswith("clip-")
    assert model.vision is not None
    assert model.vision.features([model.vision.prepare(Image.new("RGB", (40, 40)))]).shape == (1, sd2.DIM)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_without_steps_each_scheduler_draws_what_plain_diffusers_draws(
    service: Service, plain: StableDiffusionPipeline, quick: Request, name: str
) -> None:
    kind, settings = PLAIN[name]
    components = {**plain.components, "scheduler": kind.from_config(plain.scheduler.config, **settings)}
    theirs = StableDiffusionPipeline(**components, requires_safety_checker=False)(
        "the cat!",
        negative_prompt="the dog",
        width=128,
        height=128,
        num_inference_steps=5,
        generator=[torch.Generator().manual_seed(7)],
    ).images[0]
    request = replace(quick, prompt="the cat!", negative_prompt="the dog", num_inference_steps=5, scheduler=name)
    assert drawn(service, replace(request, aesthetic_steps=0)) == theirs.tobytes()


def test_the_prediction_type_is_used(home: Path, quick: Request, tmp_path: Path) -> None:
    """The two snapshots have the same weights: a scheduler that lost prediction_type would draw the same with both."""
    pictures = []
    for prediction in sd2.SCHEDULERS:
        path = sd2.write(home, tmp_path / prediction, prediction=prediction)
        own = Service(loading.load(checkpoint.locate(str(path), home / "weights"), CPU), Registry(home / "embeddings"))
        five = replace(quick, aesthetic_steps=0, num_inference_steps=5)
        pictures.append({name: drawn(own, replace(five, scheduler=name)) for name in SCHEDULERS})
    assert all(pictures[0][name] != pictures[1][name] for name in SCHEDULERS)


def test_from_an_image_it_equals_diffusers_img2img(
    service: Service, plain: StableDiffusionPipeline, quick: Request, tmp_path: Path
) -> None:
    Image.effect_noise((128, 128), 80).save(tmp_path / "image.png")
    request = replace(quick, aesthetic_steps=0, image=tmp_path / "image.png", num_inference_steps=5)
    found = init_image.load_init_image(request)
    assert found is not None
    scheduler = schedulers.build(request.scheduler, service.model.scheduler)
    pipe = StableDiffusionImg2ImgPipeline(**{**plain.components, "scheduler": scheduler}, requires_safety_checker=False)
    theirs = pipe(
        "the cat",
        image=img2img.encode_init_image(service.model, found).latents,
        strength=0.8,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert drawn(service, request) == theirs.tobytes()


def test_it_is_personalized_as_by_the_original(service: Service, folder: Path, liked: Request) -> None:
    """By the original's own loop, with transformers' CLIP made of the snapshot's two towers."""
    model = service.model
    text = {**model.encoder.config.to_dict(), "projection_dim": sd2.DIM}
    vision = json.loads((folder / "image_encoder" / "config.json").read_text())
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=sd2.DIM)
    )
    clip.text_model.load_state_dict(model.encoder.text_model.state_dict())
    clip.text_projection.load_state_dict(model.encoder.text_projection.state_dict())
    tokens = prompt.tokenize_prompt(model.pipeline.tokenizer, "the cat!", model.device).input_ids
    target = embedding.load_aesthetic(liked.aesthetic_embedding_file or Path()).vector
    steps = list(service.personalizer(tokens, target, steps=5, lr=1e-4))
    theirs = original.conditioning(clip.eval(), tokens, target, steps=5, lr=1e-4)
    assert original.difference(steps[-1].conditioning, theirs) <= 1e-5
    assert steps[0].similarity.item() < steps[-1].similarity.item()


def test_an_aesthetic_of_its_own_space_changes_the_image(service: Service, liked: Request, tmp_path: Path) -> None:
    drawing = service.draw(liked)
    assert drawing.similarity is not None
    assert drawing.similarity[0] < drawing.similarity[1]
    assert drawing.images[0][0].tobytes() != drawn(service, replace(liked, aesthetic_steps=0))
    Image.effect_noise((50, 50), 80).convert("RGB").save(tmp_path / "liked.png")
    from_images = replace(liked, aesthetic_embedding_file=None, aesthetic_images=tmp_path / "liked.png")
    assert service.draw(from_images).similarity is not None
    long = replace(liked, prompt="the (cat:1.4)! " * 40, long_prompt=True, aesthetic_sweep="0,2")
    assert len(service.draw(long).images) == 2


def test_aesthetics_of_stable_diffusion_1_are_refused(service: Service, quick: Request, home: Path) -> None:
    with pytest.raises(EmbeddingError, match="was made in the CLIP space openai/clip-vit-large-patch14, and the model"):
        service.draw(replace(quick, aesthetic_embedding="fantasy"))
    with pytest.raises(EmbeddingError, match=r"the aesthetic .* has 24 dimensions"):
        service.draw(replace(quick, aesthetic_embedding_file=home / "embeddings" / "fantasy.pt"))
    with pytest.raises(RequestError, match="has no default aesthetic: give"):
        service.draw(quick)


def test_a_lora_is_merged_and_one_of_stable_diffusion_1_refused(
    service: Service, model: Model, liked: Request, tmp_path: Path
) -> None:
    changes = lora.changes(service.model)
    path = lora.write(tmp_path / "own.safetensors", changes)
    merged = Service(lora.by_hand(service.model, changes, 1), service.registry)
    ours, theirs = service.draw(replace(liked, lora=path)), merged.draw(liked)
    assert ours.similarity == pytest.approx(theirs.similarity, abs=1e-4)
    first = lora.write(tmp_path / "first.safetensors", lora.changes(model))
    with pytest.raises(CheckpointError, match=r"lora: the file is for .* whose text encoder is 32 wide, .* is 48 wide"):
        service.draw(replace(liked, lora=first))


@pytest.mark.parametrize("end", [2, 519])
def test_a_prompt_is_pooled_where_it_ends_not_where_it_is_filled_up(home: Path, tmp_path: Path, end: int) -> None:
    """Old configurations have 2 as the end, for which transformers takes the highest token; newer ones the token."""
    path = sd2.write(home, tmp_path / "model")
    config = json.loads((path / "text_encoder" / "config.json").read_text())
    write_json(path / "text_encoder" / "config.json", config | {"eos_token_id": end})
    model = loading.load(checkpoint.locate(str(path), home / "weights"), CPU)
    tokens = prompt.tokenize_prompt(model.pipeline.tokenizer, "the cat! dog", model.device)
    assert model.pipeline.tokenizer.eos_token_id == 519
    [place] = (tokens.input_ids[0] == 519).nonzero().flatten().tolist()
    assert tokens.input_ids[0, place + 1 :].eq(0).all()
    assert 0 < place < 10
    with torch.no_grad():
        found = model.encoder(tokens.input_ids)
        expected: Tensor = model.encoder.text_projection(found.last_hidden_state[:, place])
    assert torch.equal(found.text_embeds, expected)
    plain = model.pipeline.tokenizer("the cat! dog", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(tokens.input_ids, plain)


@pytest.mark.parametrize("has_clip", [True, False])
def test_a_missing_projection_is_named_with_its_remedy(home: Path, tmp_path: Path, has_clip: bool) -> None:
    """Whether or not OpenAI's CLIP is there, which would not help."""
    path = sd2.write(home, tmp_path / "model", projection=False)
    config = json.loads((path / "text_encoder" / "config.json").read_text())
    write_json(path / "text_encoder" / "config.json", config | {"hidden_size": 1024})
    snapshot = checkpoint.locate(str(path), home / "weights")
    for ask in (lambda one: loading.load(one, CPU), clip.read_clip_space):
        with pytest.raises(CheckpointError) as error:
            ask(snapshot if has_clip else replace(snapshot, clip=None))
        message = str(error.value)
        assert "model is of the Stable Diffusion 2.x family: its CLIP is OpenCLIP ViT-H/14" in message
        assert "text_projection.weight [1024, 1024] of laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in message
        assert f"into {path / 'text_encoder' / 'model.fp16.safetensors'}, under that name" in message


def test_the_lines_of_the_readme_put_it_there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CLIP that lies where transformers looks before it asks the hub."""
    path = sd2.write(home, tmp_path / "stable-diffusion-2-base", projection=False)
    with torch.random.fork_rng(devices=[]):
        text = json.loads((path / "text_encoder" / "config.json").read_text()) | {"projection_dim": sd2.DIM}
        clip = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=text | {"num_hidden_layers": 4},
                vision_config=random_model.TINY["vision"] | {"projection_dim": sd2.DIM},
                projection_dim=sd2.DIM,
            )
        )
    clip.save_pretrained(tmp_path / "laion" / "CLIP-ViT-H-14-laion2B-s32B-b79K")
    readme = (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    [lines] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "laion/" in block]
    monkeypatch.chdir(tmp_path)
    exec(lines, {})  # noqa: S102
    model = loading.load(checkpoint.locate(str(path), home / "weights"), CPU)
    assert torch.equal(model.encoder.text_projection.weight, clip.text_projection.weight)
    assert model.vision is not None
    own = clip.vision_model.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in model.vision._model.vision_model.state_dict().items())
    [file] = (path / "text_encoder").glob("*.safetensors")
    with safe_open(file, framework="pt") as tensors:
        assert "text_model.final_layer_norm.weight" in tensors.keys()


def test_pipelines_of_ones_own_take_its_projection(service: Service, plain: StableDiffusionPipeline) -> None:
    projection = service.model.encoder.text_projection.weight
    embeds = prompt_embeds(plain, "the cat", torch.randn(1, sd2.DIM), projection=projection, steps=2)
    assert embeds["prompt_embeds"].shape == (1, 77, sd2.HIDDEN)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"_class_name": "FluxPipeline"},
            "is a FluxPipeline; Stable Diffusion 1.x or 2.x, a Stab",
        ),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "is a StableDiffusionInpaintPipeline; "),
        ({"_class_name": "StableDiffusionDepth2ImgPipeline"}, "is a StableDiffusionDepth2ImgPipeline; "),
        ({"_class_name": ["x"]}, r"is a \['x'\]; "),
        ({}, "names no pipeline of diffusers"),
        ([], "names no pipeline of diffusers"),
    ],
)
def test_snapshots_of_other_kinds_are_refused(home: Path, tmp_path: Path, index: Any, message: str) -> None:
    write_json(tmp_path / "model_index.json", index)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.locate(str(tmp_path), home / "weights")


def test_a_snapshot_saved_as_img2img_loads(home: Path, tmp_path: Path) -> None:
    path = sd2.write(home, tmp_path / "model")
    index = json.loads((path / "model_index.json").read_text()) | {"_class_name": "StableDiffusionImg2ImgPipeline"}
    write_json(path / "model_index.json", index)
    model = loading.load(checkpoint.locate(str(path), home / "weights"), CPU)
    assert type(model.pipeline) is StableDiffusionPipeline
