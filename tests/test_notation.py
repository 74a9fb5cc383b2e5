"""Mixes and sweeps as text."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aesthetic.errors import RequestError
from aesthetic.notation import parse_mix, parse_stops


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("fantasy:0.7 gloomcore:0.5 laion_7plus:-0.2", {"fantasy": 0.7, "gloomcore": 0.5, "laion_7plus": -0.2}),
        ("fantasy", {"fantasy": 1.0}),
        (" fantasy:1e-1,\tgloomcore:0\n", {"fantasy": 0.1, "gloomcore": 0.0}),
    ],
)
def test_a_mix_is_names_and_weights(text: str, mix: dict[str, float]) -> None:
    assert parse_mix(text) == mix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "takes 1 to 16 aesthetics, not 0"),
        (" , ", "takes 1 to 16 aesthetics, not 0"),
        (" ".join(f"a{i}" for i in range(17)), "takes 1 to 16 aesthetics, not 17"),
        ("fantasy:much", "the weight of 'fantasy' must be -100 to 100, not 'much'"),
        ("fantasy:", "takes parts as fantasy:0.7, without spaces in them, not 'fantasy:'"),
        ("fantasy:1_0", "must be -100 to 100, not '1_0'"),
        ("fantasy:٣", "must be -100 to 100, not '٣'"),
        ("fantasy:nan", "must be -100 to 100, not 'nan'"),
        ("fantasy:1:2", "must be -100 to 100, not '1:2'"),
        ("fantasy: 0.5", "takes parts as fantasy:0.7, without spaces in them"),
        ("fantasy:-1e9", "must be -100 to 100, not '-1e9'"),
        (":0.5", "takes parts as fantasy:0.7"),
        ("fantasy fantasy:2", "aesthetic_mix names 'fantasy' twice"),
        ("fantasy:0 gloomcore:-0", "comes to nothing: at least one weight must not be 0"),
    ],
)
def test_other_mixes_are_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_mix(text)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["0,2,5,10,20", "0 2 5 10 20", " 0,2, 5\n10 20,"])
def test_a_sweep_is_rising_numbers(text: str) -> None:
    assert parse_stops(text) == (0, 2, 5, 10, 20)


@pytest.mark.parametrize(
    "text", ["", ",", "5,2", "2,2", "101", "-1,2", "1.5", "a", "²", "1e1", ",".join("0123456789abc")]
)
def test_other_sweeps_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="aesthetic_sweep takes 1 to 12 rising numbers of steps up to 100"):
        parse_stops(text)


@given(st.text(max_size=40))
def test_anything_is_read_or_refused(text: str) -> None:
    for parse in (parse_mix, parse_stops):
        with suppress(RequestError):
            parse(text)
