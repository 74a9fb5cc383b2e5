"""The effect of each way to steer on images, measured with the demo model's CLIP or in the pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from aesthetic.embeddings import interpolation
from aesthetic.pipeline import prompt
from aesthetic.service import Service
from tests import lora
from tests.demo import STEPS, asked, draw, nearness, saved
from weights.training import lora as style
from weights.training import options

VISIBLE = 0.1  # of a cosine
GOLD = asked("a castle", "gold")


@pytest.fixture(scope="module")
def plain(demo: Service) -> Image.Image:
    """The castle without an aesthetic."""
    return draw(demo, asked("a castle"))


@pytest.fixture(scope="module")
def golden(demo: Service) -> Image.Image:
    """The castle in gold."""
    return draw(demo, GOLD)


def vector(demo: Service, name: str) -> Tensor:
    """The unit vector [1, D] of an aesthetic."""
    return demo.registry.load(name, demo.model.clip_space).vector


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def test_half_the_weight_gives_part_of_the_effect(demo: Service, plain: Image.Image, golden: Image.Image) -> None:
    half = draw(demo, replace(GOLD, aesthetic_weight=0.5, aesthetic_slerp=True))
    near = [nearness(demo, picture, vector(demo, "gold")) for picture in (plain, half, golden)]
    assert near[1] > near[0] + VISIBLE
    assert near[2] > near[0] + VISIBLE
    assert half.tobytes() != golden.tobytes()


def test_a_mix_has_the_effect_of_its_parts(demo: Service, plain: Image.Image) -> None:
    mix = {"gold": 1.0, "chalk": -0.7}
    text = " ".join(f"{name}:{weight}" for name, weight in mix.items())
    target = interpolation.mix([vector(demo, name) for name in mix], list(mix.values()))
    drawn = draw(demo, replace(GOLD, aesthetic_embedding=None, aesthetic_mix=text))
    assert nearness(demo, drawn, target) > nearness(demo, plain, target) + VISIBLE


def test_a_phrase_turns_the_aesthetic_towards_or_away_from_it(demo: Service, golden: Image.Image) -> None:
    phrase = prompt.embed(
        demo.model, prompt.tokenize_prompt(demo.model.pipeline.tokenizer, "a neon sign", demo.model.device)
    )
    turned = replace(GOLD, aesthetic_text="a neon sign", aesthetic_text_angle=0.5)
    towards = nearness(demo, draw(demo, turned), phrase)
    away = nearness(demo, draw(demo, replace(turned, aesthetic_text_negative=True)), phrase)
    assert towards > nearness(demo, golden, phrase) + VISIBLE
    assert towards > away + VISIBLE


def test_until_stops_once_the_similarity_has_risen_enough(demo: Service, plain: Image.Image) -> None:
    drawing = demo.draw(replace(GOLD, aesthetic_until=0.2))
    assert drawing.similarity is not None
    before, after = drawing.similarity
    assert 0 < drawing.steps < STEPS
    assert 0.2 <= after - before < 0.2 * drawing.steps / (drawing.steps - 1) + 0.02  # one step less was too few
    [(picture, _)] = drawing.images
    assert nearness(demo, picture, vector(demo, "gold")) > nearness(demo, plain, vector(demo, "gold")) + VISIBLE


def test_images_of_a_style_lead_to_it(demo: Service, plain: Image.Image, golden: Image.Image, tmp_path: Path) -> None:
    own = replace(GOLD, aesthetic_embedding=None, aesthetic_images=saved(golden, tmp_path / "mine.png"))
    near = [nearness(demo, picture, vector(demo, "gold")) for picture in (plain, draw(demo, own))]
    assert near[1] > near[0] + VISIBLE


def test_more_strength_leaves_less_of_the_image(demo: Service, plain: Image.Image, tmp_path: Path) -> None:
    house = replace(asked("a house"), num_inference_steps=5, image=saved(plain, tmp_path / "castle.png"))
    near = [difference(draw(demo, replace(house, prompt_strength=strength)), plain) for strength in (0.2, 0.6, 1.0)]
    assert near == sorted(near)
    assert near[2] > 2 * near[0]


def test_black_parts_of_the_mask_are_kept(demo: Service, plain: Image.Image, tmp_path: Path) -> None:
    mask = options.mask(plain.size)
    request = replace(
        GOLD, image=saved(plain, tmp_path / "castle.png"), mask=saved(mask, tmp_path / "mask.png"), prompt="a tree"
    )
    drawn, half = draw(demo, request), plain.width // 2
    left, right = (0, 0, half, plain.height), (half, 0, plain.width, plain.height)
    assert drawn.crop(left).tobytes() == plain.crop(left).tobytes()
    assert difference(drawn.crop(right), plain.crop(right)) > 10


def test_a_weight_raises_or_lowers_the_effect_of_words(demo: Service) -> None:
    near = [
        nearness(demo, draw(demo, replace(asked(words), long_prompt=True)), vector(demo, "gold"))
        for words in ("a cat in (gold relief:0)", "a cat in (gold relief:1.5)")
    ]
    assert near[1] > near[0] + VISIBLE


def test_a_long_prompt_is_read_to_its_end(demo: Service) -> None:
    words = "a castle" + ", " * 76 + "a blueprint"  # past the 75 tokens that fit
    cut, whole = (draw(demo, replace(asked(words), long_prompt=long)) for long in (False, True))
    assert nearness(demo, whole, vector(demo, "blueprint")) > nearness(demo, cut, vector(demo, "blueprint")) + VISIBLE


def test_a_larger_lora_scale_changes_the_image_more(demo: Service, tmp_path: Path) -> None:
    """The demo's blocks differ in their numbers of layers, which diffusers' weighting of LoRAs does not support."""
    quick = replace(asked("a castle"), num_inference_steps=2)
    plain = draw(demo, quick)
    path = tmp_path / "style.safetensors"
    lora.write(path, lora.changes(demo.model))
    moved = [difference(draw(demo, replace(quick, lora=path, lora_scale=scale)), plain) for scale in (0, 0.05, 0.5)]
    assert moved[0] == 0
    assert 0 < moved[1] < moved[2]


def test_a_lora_of_a_style_draws_in_it(demo: Service, plain: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "night.safetensors"
    path.write_bytes(style.make("night"))
    drawn = draw(demo, replace(asked("a castle"), lora=path))
    assert nearness(demo, drawn, vector(demo, "night")) > nearness(demo, plain, vector(demo, "night")) + VISIBLE
