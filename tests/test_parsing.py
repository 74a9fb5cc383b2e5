"""Parsing of mixes, sweeps and prompt weights."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aesthetic.errors import RequestError
from aesthetic.parsing import parse_mix, parse_sweep, parse_weights


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
        ("fantasy:", "takes parts such as fantasy:0.7, without spaces, not 'fantasy:'"),
        ("fantasy:1_0", "must be -100 to 100, not '1_0'"),
        ("fantasy:٣", "must be -100 to 100, not '٣'"),
        ("fantasy:nan", "must be -100 to 100, not 'nan'"),
        ("fantasy:1:2", "must be -100 to 100, not '1:2'"),
        ("fantasy: 0.5", "takes parts such as fantasy:0.7, without spaces"),
        ("fantasy:-1e9", "must be -100 to 100, not '-1e9'"),
        (":0.5", "takes parts such as fantasy:0.7"),
        ("fantasy fantasy:2", "aesthetic_mix names 'fantasy' twice"),
        ("fantasy:0 gloomcore:-0", "has only weights of 0: at least one must not be 0"),
    ],
)
def test_other_mixes_are_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_mix(text)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["0,2,5,10,20", "0 2 5 10 20", " 0,2, 5\n10 20,"])
def test_a_sweep_is_rising_numbers(text: str) -> None:
    assert parse_sweep(text) == (0, 2, 5, 10, 20)


@pytest.mark.parametrize(
    "text", ["", ",", "5,2", "2,2", "101", "-1,2", "1.5", "a", "²", "1e1", ",".join("0123456789abc")]
)
def test_other_sweeps_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="aesthetic_sweep takes 1 to 12 rising numbers of steps up to 100"):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(red cat: .5 )", [("red cat", 0.5)]),
        ("(a:0)(b:2.)", [("a", 0), ("b", 2)]),
        ("(a:1.5)(b:1.50)", [("ab", 1.5)]),
        ("(4:3 screen:1.2)", [("4:3 screen", 1.2)]),
        ("a (red:1) cat", [("a red cat", 1)]),
        (r"\(16:9\) and (a \(b\):1.5)", [("(16:9) and ", 1), ("a (b)", 1.5)]),
        ("", []),
        ("(small) ((red)) [x] (red:) (red:very) (red:1e0) :) (( C++ a\\b", None),
    ],
)
def test_only_weighted_words_have_weights(text: str, parts: list[tuple[str, float]] | None) -> None:
    assert parse_weights(text) == ([(text, 1)] if parts is None else parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(16:9)", r"the weight of '16' must be 0 to 2, not '9'; write \( and \) for parentheses that are text"),
        ("(red:-1)", "the weight of 'red' must be 0 to 2, not '-1'"),
        ("(red:1.2.3)", "the weight of 'red' must be 0 to 2, not '1.2.3'"),
        ("((red:1.2) cat:1.3)", "':1.3)' ends a weight that has no beginning: write (words:1.3), without nesting"),
        ("red:1.3)", "':1.3)' ends a weight that has no beginning"),
        ("(:1.3)", "':1.3)' ends a weight that has no beginning"),
        (r"\(red:1.3)", "':1.3)' ends a weight that has no beginning"),
    ],
)
def test_invalid_weights_are_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_weights(text)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["(" * 2000, "(a" * 1000, "(:" * 1000, "\\(" * 1000, "(" + "\\" * 1999, ":1 " * 666])
def test_hostile_prompts_take_no_time(text: str) -> None:
    started = time.process_time()
    parse_weights(text)
    assert time.process_time() - started < 0.5


@given(st.text(alphabet="a (:1.)\\", max_size=30))
def test_escaped_parentheses_are_text(text: str) -> None:
    plain = text.replace("\\", "")
    escaped = plain.replace("(", r"\(").replace(")", r"\)")
    assert parse_weights(escaped) == ([(plain, 1.0)] if plain else [])


@given(st.text(max_size=40))
def test_anything_is_read_or_refused(text: str) -> None:
    for parse in (parse_mix, parse_sweep, parse_weights):
        with suppress(RequestError):
            parse(text)
