"""All ways to steer, through the service."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from aesthetic.errors import AestheticError, DrawingError, RequestError
from aesthetic.gradient import Step
from aesthetic.images.metadata import read_recipe
from aesthetic.models.loading import Model
from aesthetic.pipeline import prompt, sampling, target
from aesthetic.pipeline.conditioning import PersonalizedConditioning, condition
from aesthetic.request import SCHEDULERS, Request
from aesthetic.service import Result, Service
from tests import lora


@pytest.fixture
def strong(quick: Request) -> Request:
    """Steps that change the images of a tiny random model."""
    return replace(quick, aesthetic_lr=0.01)


def pixels(drawing: Result) -> list[bytes]:
    return [image.tobytes() for image, _ in drawing.images]


def test_each_stop_of_a_sweep_equals_the_image_drawn_alone(service: Service, strong: Request, tmp_path: Path) -> None:
    paths, sweep = service.predict(replace(strong, aesthetic_sweep="0,1,3,6"), tmp_path)
    for (image, recipe), steps in zip(sweep.images, (0, 1, 3, 6), strict=True):
        [(alone, same)] = service.draw(replace(strong, aesthetic_steps=steps)).images
        assert image.tobytes() == alone.tobytes()
        assert recipe == same
    assert len(set(pixels(sweep))) == 4
    assert [path.name for path in paths] == [f"output.{i}.png" for i in range(5)]
    assert read_recipe(paths[2]).rebuild().aesthetic_steps == 3
    with Image.open(paths[4]) as sheet:
        assert sheet.width > 4 * 256 > sheet.height > 256


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_prompt_is_not_personalized(service: Service, strong: Request, empty: str) -> None:
    for long in (False, True):
        request = replace(strong, prompt=empty, long_prompt=long, negative_prompt="the dog")
        drawing = service.draw(request)
        assert pixels(drawing) == pixels(service.draw(replace(request, aesthetic_steps=0)))
        assert (drawing.similarity, drawing.steps, drawing.drift) == (None, 0, 0)
        [(_, recipe)] = drawing.images
        assert recipe.aesthetic == {}
        assert pixels(service.draw(recipe.rebuild())) == pixels(drawing)
        assert pixels(service.draw(replace(request, aesthetic_sweep="1,3"))) == pixels(drawing)


def test_a_sweep_that_diverges_draws_the_stops_before(
    service: Service, strong: Request, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    expected = service.draw(replace(strong, aesthetic_sweep="0,1"))
    steps = service.personalizer

    def diverging(*inputs: Any, **options: Any) -> Iterator[Step]:
        for step in steps(*inputs, **options):
            yield replace(step, conditioning=step.conditioning * (torch.nan if step.index > 1 else 1))

    monkeypatch.setattr(service, "personalizer", diverging)
    paths, drawing = service.predict(replace(strong, aesthetic_sweep="0,1,3,5"), tmp_path)
    assert pixels(drawing) == pixels(expected)
    assert (len(paths), drawing.steps, drawing.similarity) == (3, 1, expected.similarity)
    assert "The sweep ends at 1 steps: the personalization diverged by step 3: lower aesthetic_lr (0.01)" in caplog.text
    with pytest.raises(DrawingError, match="the personalization diverged by step 3"):
        service.draw(replace(strong, aesthetic_sweep="3,5"))


def test_a_weight_of_0_is_the_plain_model_and_1_the_papers(service: Service, strong: Request) -> None:
    for slerp in (False, True):
        changed = replace(strong, aesthetic_slerp=slerp)
        plain, half, full = (service.draw(replace(changed, aesthetic_weight=weight)) for weight in (0, 0.5, 1))
        assert pixels(plain) == pixels(service.draw(replace(strong, aesthetic_steps=0)))
        assert pixels(full) == pixels(service.draw(strong))
        assert plain.drift == 0 < half.drift < full.drift
        assert len({*pixels(plain), *pixels(half), *pixels(full)}) == 3


def test_a_weight_in_a_sweep(service: Service, strong: Request) -> None:
    for weight in (0, 0.5):
        sweep = service.draw(replace(strong, aesthetic_sweep="0,1,3", aesthetic_weight=weight))
        for (image, recipe), steps in zip(sweep.images, (0, 1, 3), strict=True):
            [(alone, same)] = service.draw(replace(strong, aesthetic_steps=steps, aesthetic_weight=weight)).images
            assert image.tobytes() == alone.tobytes()
            assert recipe == same


def test_draw_batches_equals_single_requests(service: Service, strong: Request) -> None:
    sweep = replace(strong, aesthetic_sweep="1,3")
    for (steps, batch), expected in zip(service.draw_batches(sweep, 2), (1, 3), strict=True):
        assert steps == expected
        for i, (image, recipe) in enumerate(batch):
            assert strong.seed is not None
            alone = replace(strong, aesthetic_steps=steps, seed=strong.seed + i)
            [(same, its_recipe)] = service.draw(alone).images
            assert image.tobytes() == same.tobytes()
            assert recipe == its_recipe


def test_gradients_are_freed_before_drawing(service: Service, strong: Request) -> None:
    service.draw(replace(strong, aesthetic_steps=20, aesthetic_until=0.0001))
    personalizer: Any = service.personalizer
    assert all(parameter.grad is None for parameter in personalizer._working.parameters())


def test_a_truncated_phrase_is_logged_and_a_blank_one_ignored(
    service: Service, quick: Request, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        service.draw(replace(quick, aesthetic_text="the cat " * 100))
    assert "The aesthetic_text is longer than CLIP can read. Truncated: " in caplog.text
    assert replace(quick, aesthetic_text=" \n", aesthetic_mix=" ", aesthetic_sweep="") == quick


def test_a_mix_of_one_equals_that_one_and_a_negative_weight_steers_away(service: Service, strong: Request) -> None:
    def similarity(**aesthetic: str) -> float:
        drawing = service.draw(replace(strong, **aesthetic))  # type: ignore[arg-type]
        assert drawing.similarity is not None
        return drawing.similarity[1] - drawing.similarity[0]

    alone = similarity(aesthetic_embedding="fantasy")
    assert similarity(aesthetic_mix="fantasy:0.3") == pytest.approx(alone, abs=1e-5)
    [one, other] = (service.registry.load(name).vector for name in ("fantasy", "gloomcore"))
    mixed = target.requested_aesthetic(
        replace(strong, aesthetic_mix="fantasy:2 gloomcore:-1"), service.model, service.registry
    )
    assert mixed is not None
    expected = 2 * one - other
    torch.testing.assert_close(mixed.vector, expected / expected.norm())


def test_errors_of_a_mix_say_what_is_wrong(service: Service, quick: Request) -> None:
    with pytest.raises(
        RequestError, match="aesthetic_mix: there is no aesthetic 'nonsense'; this model can follow sac"
    ):
        service.draw(replace(quick, aesthetic_mix="fantasy nonsense:0.5"))


def test_a_mix_is_in_the_recipe(service: Service, strong: Request, tmp_path: Path) -> None:
    request = replace(strong, aesthetic_mix="fantasy:0.7,gloomcore:-0.5", aesthetic_weight=0.5)
    [path], _ = service.predict(request, tmp_path)
    recipe = read_recipe(path)
    assert (recipe.aesthetic["name"], recipe.aesthetic["source"]) == ("fantasy:0.7 gloomcore:-0.5", "mix")
    assert recipe.rebuild() == request


def test_a_phrase_turns_the_aesthetic(service: Service, strong: Request) -> None:
    aesthetic = service.registry.load("fantasy")
    phrase = prompt.embed(
        service.model, prompt.tokenize_prompt(service.model.pipeline.tokenizer, "the dog", service.model.device)
    )
    cosines = []
    for away, angle in ((True, 0.5), (False, 0.0), (False, 0.5), (False, 1.0)):
        request = replace(strong, aesthetic_text="the dog", aesthetic_text_angle=angle, aesthetic_text_negative=away)
        turned = target.target_embedding(request, service.model, aesthetic)
        cosines.append((turned @ phrase.T).item())
    assert cosines == sorted(cosines)
    assert cosines[-1] == pytest.approx(1)
    same = replace(strong, aesthetic_text="the dog", aesthetic_text_angle=0)
    assert pixels(service.draw(same)) == pixels(service.draw(strong))


def test_it_stops_once_the_similarity_has_risen(service: Service, strong: Request) -> None:
    rises = []
    for steps in (1, 2):
        similarity = service.draw(replace(strong, aesthetic_steps=steps)).similarity
        assert similarity is not None
        rises.append(similarity[1] - similarity[0])
    early = service.draw(replace(strong, aesthetic_steps=50, aesthetic_until=rises[1]))
    assert early.steps == 2
    assert pixels(early) == pixels(service.draw(replace(strong, aesthetic_steps=2)))
    assert early.images[0][1].rebuild().aesthetic_steps == 2
    assert service.draw(replace(strong, aesthetic_until=2.0)).steps == strong.aesthetic_steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"aesthetic_sweep": "0,2", "num_outputs": 2},
            "aesthetic_sweep draws one image for each number of steps: num_outputs must be 1",
        ),
        ({"aesthetic_sweep": "0,2", "aesthetic_until": 0.1}, "give only one of aesthetic_sweep and aesthetic_until"),
        ({"aesthetic_mix": "a", "aesthetic_embedding": "b"}, "only one of aesthetic_embedding and aesthetic_mix"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request(**changes)


LONG = "the cat and the dog, " * 20


def run(service: Service, request: Request) -> tuple[PersonalizedConditioning, PersonalizedConditioning]:
    target = service.registry.load("sac_8plus").vector
    start, stops = condition(service.model, service.personalizer, request, target)
    return start, stops[-1]


def test_long_prompt_does_not_change_a_prompt_that_fits(service: Service, strong: Request) -> None:
    for changes in (
        {"aesthetic_weight": 0.5},
        {"aesthetic_weight": 0.5, "aesthetic_slerp": True},
        {"aesthetic_sweep": "0,1,3"},
        {"aesthetic_until": 0.001},
        {"num_outputs": 2, "prompt": "a (the cat:1) (dog)", "negative_prompt": "the dog"},
        *({"scheduler": scheduler, "num_inference_steps": 5} for scheduler in SCHEDULERS),
    ):
        request = replace(strong, **changes)  # type: ignore[arg-type]
        plain = replace(request, prompt=request.prompt.replace("(the cat:1)", "the cat"))
        assert pixels(service.draw(replace(request, long_prompt=True))) == pixels(service.draw(plain))


def test_every_chunk_is_personalized_towards_the_mean(service: Service, strong: Request) -> None:
    request = replace(strong, prompt=LONG, long_prompt=True)
    target = service.registry.load("sac_8plus").vector
    tokens = prompt.tokenize_prompt(service.model.pipeline.tokenizer, LONG, service.model.device, long=True)
    count = len(tokens.input_ids)
    assert count > 1
    *_, last = service.personalizer(tokens.input_ids, target, steps=3, lr=0.01)
    start, end = run(service, request)
    assert torch.equal(end.conditioning.positive, last.conditioning.reshape(1, 77 * count, -1))
    for one, other in zip(start.conditioning.positive.chunk(count, 1), last.conditioning, strict=True):
        assert not torch.equal(one[0], other)
    assert start.similarity is not None
    assert end.similarity is not None
    assert end.similarity == pytest.approx(last.similarity.mean().item())
    assert start.similarity < end.similarity
    assert (end.conditioning.negative.shape, start.drift) == (end.conditioning.positive.shape, 0)


def test_the_gradient_comes_from_every_chunk(service: Service, strong: Request) -> None:
    """With another second chunk, the first one is personalized otherwise: they move one encoder."""
    texts = ("cat " * 75 + rest for rest in ("dog", "the the the"))
    runs = [run(service, replace(strong, prompt=text, long_prompt=True)) for text in texts]
    for stops, is_alike in zip(zip(*runs, strict=True), (True, False), strict=True):
        one, other = (stop.conditioning.positive[:, :77] for stop in stops)
        assert torch.equal(one, other) == is_alike


def test_a_longer_negative_prompt_does_not_change_the_personalization(service: Service, strong: Request) -> None:
    ends = [run(service, replace(strong, negative_prompt=text, long_prompt=True))[1] for text in ("", LONG)]
    assert ends[0].drift == pytest.approx(ends[1].drift)
    short, long = (end.conditioning for end in ends)
    assert torch.equal(long.positive[:, :77], short.positive)
    assert torch.equal(long.positive[:, 77:154], long.empty)
    assert long.positive.shape == long.negative.shape


def test_words_are_weighted_after_the_personalization(service: Service, strong: Request) -> None:
    (_, plain), (_, weighted) = (
        run(service, replace(strong, prompt=text, long_prompt=True)) for text in ("the cat dog", "the (cat:1.5) dog")
    )
    one, other, empty = plain.conditioning.positive, weighted.conditioning.positive, plain.conditioning.empty
    torch.testing.assert_close(other[:, 2], empty[:, 2] + 1.5 * (one[:, 2] - empty[:, 2]))
    assert torch.equal(other[:, [0, 1, *range(3, 77)]], one[:, [0, 1, *range(3, 77)]])
    assert plain.similarity == weighted.similarity


def test_a_long_prompt_is_drawn_and_its_recipe_draws_it_again(
    service: Service, strong: Request, tmp_path: Path
) -> None:
    request = replace(strong, prompt=LONG + "(the cat:1.3)", long_prompt=True, aesthetic_embedding="fantasy")
    [path], drawing = service.predict(request, tmp_path)
    again = read_recipe(path).rebuild()
    assert again == request
    assert pixels(service.draw(again)) == pixels(drawing)
    assert pixels(service.draw(replace(request, long_prompt=False))) != pixels(drawing)


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.sampled_from(["the cat", "", LONG, "a (cat:1.3) dog", LONG + "(cat:0.5)", "(cat:3)"]),
    "negative_prompt": st.sampled_from(["", "the dog", LONG, "(dog:0)"]),
    "long_prompt": st.booleans(),
    "aesthetic_embedding": st.sampled_from([None, "fantasy", "nonsense"]),
    "aesthetic_mix": st.sampled_from([None, "fantasy:1 gloomcore:-0.5", "fantasy:1 nonsense", ""]),
    "aesthetic_steps": st.integers(0, 2),
    "aesthetic_sweep": st.sampled_from([None, "0", "0,1", "1 2", "2,1"]),
    "aesthetic_until": st.sampled_from([None, 0.0, 0.001, 2.0]),
    "aesthetic_weight": st.sampled_from([0, 0.3, 1]),
    "aesthetic_slerp": st.booleans(),
    "aesthetic_text": st.sampled_from(["", "the dog"]),
    "aesthetic_text_angle": st.sampled_from([0, 0.3, 1]),
    "aesthetic_text_negative": st.booleans(),
    "num_outputs": st.sampled_from([1, 2]),
    "guidance_scale": st.sampled_from([1, 7.5]),
    "scheduler": st.sampled_from(["DDIM", "K_EULER", "KLMS"]),
    "num_inference_steps": st.sampled_from([2, 3]),
    "image": st.sampled_from([None, "picture"]),
    "mask": st.sampled_from([None, "mask", "black"]),
    "prompt_strength": st.sampled_from([0.2, 0.5, 1]),
    "lora": st.sampled_from([None, "lora", "wide", "broken"]),
    "lora_scale": st.sampled_from([0, 0.5, 1]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Mapping[str, Path]:
    """An image, masks that do and don't let anything be redrawn, and LoRAs that do and don't fit."""
    folder = tmp_path_factory.mktemp("files")
    for name, color in (("picture", "red"), ("mask", "white"), ("black", "black")):
        Image.new("RGB", (150, 140), color).save(folder / f"{name}.png")
    found = {name: folder / f"{name}.png" for name in ("picture", "mask", "black")}
    changes = lora.changes(model)
    wide = {
        place: replace(pair, down=pair.down.repeat(1, 2, *[1] * (pair.down.ndim - 2)))
        for place, pair in changes.items()
    }
    found["lora"] = lora.write(folder / "lora.safetensors", changes)
    found["wide"] = lora.write(folder / "wide.safetensors", wide)
    (folder / "broken.safetensors").write_bytes(found["lora"].read_bytes()[:-1])
    return found | {"broken": folder / "broken.safetensors"}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({}, optional=OPTIONS))
def test_every_combination_works_or_is_refused_before_the_model_works(
    service: Service, quick: Request, files: Mapping[str, Path], options: dict[str, Any]
) -> None:
    asked = {"num_inference_steps": 2} | {
        name: files.get(value, value) if name in ("image", "mask", "lora") else value for name, value in options.items()
    }
    worked = []
    with pytest.MonkeyPatch.context() as patch:
        denoise = sampling.denoise
        patch.setattr(sampling, "denoise", lambda *inputs: worked.append(1) or denoise(*inputs))  # type: ignore[func-returns-value]
        message = ""
        try:
            drawing = service.draw(replace(quick, **asked))
        except AestheticError as error:
            message = str(error)
    if message:
        assert not worked
        assert any(name in message for name in asked)
    else:
        stops = drawing.request.sweep or (drawing.request.aesthetic_steps,)
        assert len(drawing.images) == len(stops) * options.get("num_outputs", 1)
