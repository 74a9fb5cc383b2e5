"""The bundled model on a CPU, from prompt to image."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageChops, ImageStat

from aesthetic.embeddings.registry import Registry
from aesthetic.models.manifest import read_manifest
from aesthetic.pipeline import sampling
from aesthetic.request import MAX_AREA, MAX_SIDE, SIZES
from aesthetic.service import Service
from tests.demo import FOLDER, STEPS, asked, draw, nearness
from tests.snapshot import ROOT, sha256
from weights.training import captions, register
from weights.training.judge import Judges

SOURCE = read_manifest(ROOT / "weights")["demo"]
STYLES = captions.AESTHETICS
SOME = STYLES[::6]  # an image takes seconds; weights/training/evaluate.py draws them all

MAX_BYTES = 48_000_000  # of all files

PROMPTS = ("a red heart", "a house")
FOLLOWING = PROMPTS[1]
RISE = 0.05  # of the cosine of prompt and aesthetic in so many steps, at least
DRAWN = [side for side in SIZES if side <= MAX_SIDE][::7]  # odd and even multiples of 64
NEARER = 0.05  # how much nearer to the aesthetic an image of FOLLOWING comes, at least, as a cosine


@pytest.fixture(scope="module")
def drawn(demo: Service) -> Mapping[str, Image.Image]:
    """An image of each prompt, drawn without an aesthetic."""
    return {prompt: draw(demo, asked(prompt)) for prompt in PROMPTS}


def test_every_file_is_the_one_that_the_manifest_names() -> None:
    files = {path.relative_to(FOLDER).as_posix(): path for path in register.model_files(FOLDER)}
    assert "model_index.json" in files
    assert files.keys() == SOURCE.files.keys()
    for name, path in files.items():
        assert (sha256(path), path.stat().st_size) == (SOURCE.files[name].sha256, SOURCE.files[name].bytes)


def test_it_is_small_enough_for_a_checkout() -> None:
    assert 0 < sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= MAX_BYTES


def test_it_has_a_clip_space_of_its_own_and_the_manifest_knows_which(demo: Service) -> None:
    assert demo.model.clip_space == SOURCE.clip_space
    assert demo.model.clip_space.startswith("clip-")
    assert demo.model.vision is not None
    assert demo.model.snapshot.bundled


def test_its_aesthetics_are_those_of_the_training(demo: Service) -> None:
    assert tuple(demo.registry.names(demo.model.clip_space)) == STYLES
    assert demo.registry.default(demo.model.clip_space) == register.DEFAULT


@pytest.mark.parametrize("name", STYLES)
def test_each_aesthetic_is_a_direction_in_its_space(demo: Service, name: str) -> None:
    aesthetic = demo.registry.load(name, demo.model.clip_space)
    assert aesthetic.vector.shape == (1, demo.model.dim)
    assert aesthetic.vector.norm().item() == pytest.approx(1, abs=1e-6)
    assert aesthetic.notes["space"] == demo.model.clip_space
    assert aesthetic.notes["model"] == "demo"


def test_the_same_request_draws_the_same_image(demo: Service, drawn: Mapping[str, Image.Image]) -> None:
    assert draw(demo, asked("a red heart")).tobytes() == drawn["a red heart"].tobytes()
    assert len({picture.tobytes() for picture in drawn.values()}) == len(PROMPTS)


def test_a_red_heart_is_red(drawn: Mapping[str, Image.Image]) -> None:
    red, green, blue = ImageStat.Stat(drawn["a red heart"]).mean
    assert red > max(green, blue) + 10


def test_without_steps_it_is_plain_diffusers(demo: Service) -> None:
    plain = StableDiffusionPipeline.from_pretrained(FOLDER)
    plain.set_progress_bar_config(disable=True)
    request = replace(asked("a red heart"), scheduler="PNDM", num_inference_steps=5)
    latents = sampling.starting_noise(demo.model, request, sampling.generators(request)).to(plain.unet.dtype)
    theirs = plain("a red heart", latents=latents, num_inference_steps=5).images[0]
    assert max(ImageChops.difference(draw(demo, request), theirs).tobytes()) <= 1  # of 255


@pytest.mark.parametrize("name", SOME)
def test_the_similarity_rises_with_the_steps(demo: Service, name: str) -> None:
    quick = replace(asked("a red heart", name), width=128, height=128, num_inference_steps=1)
    rises = []
    for steps in (1, STEPS // 2, STEPS):
        similarity = demo.draw(replace(quick, aesthetic_steps=steps)).similarity
        assert similarity is not None
        rises.append(similarity[1] - similarity[0])
    assert 0 < rises[0] < rises[1] < rises[2]
    assert rises[2] > RISE


@pytest.mark.parametrize("name", SOME)
def test_the_image_comes_nearer_to_the_aesthetic(demo: Service, drawn: Mapping[str, Image.Image], name: str) -> None:
    target = demo.registry.load(name, demo.model.clip_space).vector
    near = [nearness(demo, picture, target) for picture in (drawn[FOLLOWING], draw(demo, asked(FOLLOWING, name)))]
    assert near[1] > near[0] + NEARER


def test_the_words_for_a_style_draw_it(demo: Service) -> None:
    """Judged by a classifier that was trained on real images only; its card says 96 %."""
    judges = Judges.load()
    pictures = [draw(demo, asked(f"{FOLLOWING}, {judges.style_phrases[name]}")) for name in SOME]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    assert [judges.styles[i] for i in judges.style_probabilities(pixels).argmax(1).tolist()] == list(SOME)


@pytest.mark.parametrize("width", DRAWN)
def test_it_draws_wide_and_tall_images(demo: Service, width: int) -> None:
    """Its latents are 1/16 of the image, halved twice: whole numbers for all multiples of 64."""
    tallest = max(height for height in DRAWN if width * height <= MAX_AREA)
    for height in {DRAWN[0], tallest}:
        request = replace(asked("a house"), width=width, height=height, num_inference_steps=1)
        assert draw(demo, request).size == (width, height)


def test_the_index_and_the_manifest_are_what_registering_writes(tmp_path: Path) -> None:
    """Except the aesthetics themselves, which need the training images."""
    for name in ("weights/manifest.json", "embeddings/index.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "weights" / "demo").symlink_to(FOLDER)
    for style in STYLES:
        (tmp_path / "embeddings" / f"{style}.safetensors").symlink_to(ROOT / "embeddings" / f"{style}.safetensors")
    registry = Registry(ROOT / "embeddings")
    notes = {style: dict(registry.load(style).notes) for style in STYLES}
    register.write_manifest(tmp_path, clip_space=SOURCE.clip_space)
    register.write_index(tmp_path, notes)
    for name in ("weights/manifest.json", "embeddings/index.json"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
