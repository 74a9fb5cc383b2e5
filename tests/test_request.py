"""Every limit, and every contradiction."""

import dataclasses
import secrets
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aesthetic.errors import RequestError
from aesthetic.request import MAX_SEED, SIZES, XL_AREA, Request


def test_defaults_are_a_request() -> None:
    assert Request().prompt == "a painting of a virus monster playing guitar"
    assert Request().seed is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"prompt": None}, "prompt must be text, not None"),
        ({"prompt": "x" * 2001}, "prompt must have at most 2000 characters, not 2001"),
        ({"prompt": "a\0b"}, "prompt must not hold the control character '\\x00'"),
        ({"prompt": "\x1b[31m"}, "prompt must not hold the control character '\\x1b'"),
        ({"prompt": "\ud800"}, "prompt must not hold the control character '\\ud800'"),
        ({"aesthetic_steps": 101}, "aesthetic_steps must be 0 to 100, not 101"),
        ({"aesthetic_steps": 2.5}, "aesthetic_steps must be a whole number, not 2.5"),
        ({"aesthetic_steps": True}, "aesthetic_steps must be a whole number, not True"),
        ({"aesthetic_lr": float("nan")}, "aesthetic_lr must be a number, not nan"),
        ({"aesthetic_lr": 10**400}, "aesthetic_lr must be a number, not 1000"),
        ({"aesthetic_lr": -0.1}, "aesthetic_lr must be 0.0 to 0.1, not -0.1"),
        ({"aesthetic_embedding_file": "x.pt"}, "aesthetic_embedding_file must be a file, not 'x.pt'"),
        ({"width": 100}, "width must be one of 128, 192, 256"),
        ({"width": 1024, "height": 1088}, "at most 1048576 pixels (1024 × 1024), and 1024 × 1088 are 1114112"),
        ({"num_outputs": 0}, "num_outputs must be 1 to 8, not 0"),
        ({"num_inference_steps": 501}, "num_inference_steps must be 1 to 500, not 501"),
        ({"guidance_scale": 0.5}, "guidance_scale must be 1.0 to 30.0, not 0.5"),
        ({"scheduler": "Euler"}, "scheduler must be one of PNDM, DDIM,"),
        ({"num_inference_steps": 2}, "num_inference_steps must be 3 or more for scheduler PNDM"),
        ({"num_inference_steps": 4, "scheduler": "HeunDiscrete"}, "num_inference_steps must be 5 or more"),
        ({"seed": -1}, "seed must be 0 to 4294967295, not -1"),
        ({"seed": 2**32}, "seed must be 0 to 4294967295, not 4294967296"),
        ({"seed": MAX_SEED, "num_outputs": 2}, "seed must be at most 4294967294 for 2 images"),
        ({"disable_safety_checker": 1}, "disable_safety_checker must be true or false, not 1"),
        ({"long_prompt": True, "prompt": "(red:3)"}, "long_prompt: the weight of 'red' must be 0 to 2, not '3'"),
        ({"long_prompt": True, "negative_prompt": "red:1)"}, "long_prompt: ':1)' ends a weight that has no beginning"),
        ({"nonsense": 1}, "unknown input 'nonsense'"),
        ({"n_samples": 2, "num_outputs": 3}, "n_samples=2 contradicts num_outputs=3"),
        ({"plms": True, "scheduler": "KLMS"}, "plms=True contradicts scheduler='KLMS'"),
        ({"plms": "yes"}, "plms must be true or false, not 'yes'"),
        (
            {"aesthetic_embedding": "fantasy", "aesthetic_images": Path("x.zip")},
            "give only one of aesthetic_embedding and aesthetic_images",
        ),
    ],
)
def test_errors_name_the_input_the_value_and_what_would_be_valid(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as error:
        Request.from_inputs(**inputs)
    assert message in str(error.value)


def test_messages_stay_short() -> None:
    with pytest.raises(RequestError) as error:
        Request.from_inputs(seed="x" * 10**6)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"n_samples": 4}, {"num_outputs": 4}),
        ({"scale": 3}, {"guidance_scale": 3.0}),
        ({"ddim_steps": 20}, {"num_inference_steps": 20}),
        ({"plms": True}, {"scheduler": "PNDM"}),
        ({"plms": False}, {"scheduler": "DDIM"}),
        ({"plms": False, "scheduler": "DDIM"}, {"scheduler": "DDIM"}),
        ({"n_samples": None, "plms": None}, {}),
    ],
)
def test_old_names_keep_working(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert Request.from_inputs(**old) == Request(**new)


def test_whole_numbers_may_come_as_floats_and_the_other_way_round() -> None:
    request = Request.from_inputs(aesthetic_steps=7.0, guidance_scale=3, seed=0.0)
    assert (request.aesthetic_steps, request.guidance_scale, request.seed) == (7, 3.0, 0)
    assert type(request.aesthetic_steps) is int
    assert type(request.guidance_scale) is float


def test_seed_zero_is_a_seed() -> None:
    assert Request(seed=0).seeded().seed == 0


def test_a_blank_seed_is_drawn_anew() -> None:
    seeds = {Request(num_outputs=8).seeded().seed for _ in range(50)}
    assert len(seeds) > 45
    assert all(seed is not None and 0 <= seed <= MAX_SEED - 7 for seed in seeds)


def test_a_random_seed_leaves_room_for_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda limit: limit - 1)
    assert Request(num_outputs=8).seeded().seed == MAX_SEED - 7
    assert Request().seeded().seed == MAX_SEED


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request().seed = 1  # type: ignore[misc]


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.binary()
)
NAMES = [*(spec.name for spec in dataclasses.fields(Request)), "n_samples", "scale", "ddim_steps", "plms"]


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING))
def test_anything_is_a_valid_request_or_refused(inputs: dict[str, Any]) -> None:
    try:
        request = Request.from_inputs(**inputs)
    except RequestError:
        return
    assert request.width in SIZES
    assert request.width * request.height <= XL_AREA
    assert isinstance(request.seeded().seed, int)
    assert Request(**dataclasses.asdict(request)) == request


@given(
    image=st.booleans(),
    strength=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    steps=st.sampled_from([5, 10]),
    outputs=st.integers(1, 3),
    sweep=st.sampled_from([None, "0,3"]),
    until=st.sampled_from([None, 0.01]),
)
def test_inputs_are_refused_together_exactly_where_they_contradict(
    *, image: bool, strength: float, steps: int, outputs: int, sweep: str | None, until: float | None
) -> None:
    inputs = {"prompt_strength": strength, "num_inference_steps": steps, "num_outputs": outputs, "scheduler": "DDIM"}
    path = Path("picture.png") if image else None
    redraws_nothing, several_stops = image and strength * steps < 1, sweep is not None and (outputs > 1 or until)
    try:
        Request(**inputs, image=path, aesthetic_sweep=sweep, aesthetic_until=until)  # type: ignore[arg-type]
    except RequestError:
        refused = True
    else:
        refused = False
    assert refused == bool(redraws_nothing or several_stops)
