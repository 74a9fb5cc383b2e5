"""Prompts as tokens and as conditioning."""

import compel
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from aesthetic import parsing
from aesthetic.errors import RequestError
from aesthetic.models.loading import Model
from aesthetic.pipeline import prompt
from aesthetic.pipeline.prompt import Conditioning, Tokens
from tests.snapshot import MODEL

SENTENCE = "the cat and the dog, "


def tokenize(model: Model, text: str, *, long: bool = False) -> Tokens:
    return prompt.tokenize_prompt(model.pipeline.tokenizer, text, model.device, long=long)


def encode(model: Model, positive: str, negative: str = "", *, long: bool = True) -> Conditioning:
    tokens = [tokenize(model, text, long=long) for text in (positive, negative, "")]
    return prompt.encode(model.pipeline.text_encoder, *tokens)


def alone(model: Model, chunk: Tensor) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = model.pipeline.text_encoder(chunk)[0]
    return hidden


@pytest.mark.parametrize("long", [False, True])
def test_encoding_is_the_plain_pipelines(model: Model, home: object, long: bool) -> None:
    plain = StableDiffusionPipeline.from_pretrained(f"{home}/weights/{MODEL}", variant="fp16")
    for negative in ("", "the dog"):
        ours = encode(model, "the (small) cat", negative, long=long)
        with torch.no_grad():
            theirs = plain.encode_prompt("the (small) cat", "cpu", 1, True, negative)
        assert torch.equal(ours.positive, theirs[0])
        assert torch.equal(ours.negative, theirs[1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200))
@example("<|startoftext|>cat<|endoftext|>")
@example("cat<|endoftext|>" * 80)
def test_tokens_are_the_tokenizers(model: Model, text: str) -> None:
    expected = model.pipeline.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    tokens = tokenize(model, text)
    assert torch.equal(tokens.input_ids, expected)
    assert tokens.weights.eq(1).all()


def test_tokens_are_padded_and_framed(model: Model) -> None:
    tokens = tokenize(model, "the cat")
    start, end = (model.pipeline.tokenizer.convert_tokens_to_ids(f"<|{name}oftext|>") for name in ("start", "end"))
    assert tokens.input_ids.shape == (1, 77)
    assert tokens.input_ids[0, 0] == start
    assert tokens.input_ids[0, 3:].eq(end).all()
    assert tokens.truncated == ""


def test_text_that_does_not_fit_is_truncated_and_kept_as_text(model: Model) -> None:
    assert tokenize(model, "cat " * 75).truncated == ""
    assert tokenize(model, "cat " * 75 + "dog").truncated == "dog"
    tokens = tokenize(model, "cat " * 75 + "dog the")
    assert tokens.truncated == "dog the"
    assert tokens.input_ids.shape == (1, 77)


def test_a_long_prompt_is_chunks_that_end_with_a_phrase(model: Model) -> None:
    tokens = tokenize(model, SENTENCE * 20, long=True)
    whole = model.pipeline.tokenizer(SENTENCE * 20, add_special_tokens=False).input_ids
    start, end = model.pipeline.tokenizer.bos_token_id, model.pipeline.tokenizer.eos_token_id
    assert tokens.input_ids[:, 0].eq(start).all()
    assert tokens.input_ids[:, -1].eq(end).all()
    kept = [token for token in tokens.input_ids.flatten().tolist() if token not in (start, end)]
    assert kept == whole
    comma = model.pipeline.tokenizer(",", add_special_tokens=False).input_ids[-1]
    for chunk in tokens.input_ids:
        assert chunk[chunk != end][-1] == comma
    assert tokens.truncated == ""


def test_at_most_ten_chunks(model: Model) -> None:
    tokens = tokenize(model, "cat " * 750 + "dog", long=True)
    assert tokens.input_ids.shape == tokens.weights.shape == (10, 77)
    assert tokens.truncated == "dog"


WORDS = st.text("abcdefghi.,;: -!()19é漢", max_size=8) | st.sampled_from(
    ["cat", "the dog,", "\\(", "(", "<|endoftext|>"]
)
TEXTS = st.lists(WORDS | WORDS.map(lambda words: f"(x{words}:1.3)"), max_size=60).map(" ".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, st.booleans())
@example("a" * 1000, True)
@example("a" * 80 + ", " + "b" * 80, True)
@example("a" * 74 + "," + "b" * 80, True)
@example(("cat " * 74 + "dog, ") * 12, True)
def test_chunks_and_weights_equal_compels(model: Model, text: str, long: bool) -> None:
    try:
        parts = parsing.parse_weights(text) if long else [(text, 1.0)]
    except RequestError:
        return
    mode = compel.SplitLongTextMode
    provider = compel.EmbeddingsProvider(
        model.pipeline.tokenizer,
        model.pipeline.text_encoder,
        truncate=False,
        split_long_text_mode=mode.PHRASES if long else mode.BRUTAL,
    )
    texts, weights = [part for part, _ in parts], [weight for _, weight in parts]
    ids, expanded, _ = provider.get_token_ids_and_expand_weights(texts, weights, "cpu")
    tokens = tokenize(model, text, long=long)
    kept = 10 if long else 1
    assert torch.equal(tokens.input_ids, ids.view(-1, 77)[:kept])
    assert torch.equal(tokens.weights, expanded.view(-1, 77)[:kept])
    lost = model.pipeline.tokenizer.decode(ids.view(-1, 77)[kept:].flatten(), skip_special_tokens=True)
    assert tokens.truncated == lost.strip()


def test_each_chunk_is_encoded_on_its_own(model: Model) -> None:
    text = "cat " * 75 + "dog " * 20
    ours = encode(model, text).positive
    parts = [alone(model, tokenize(model, part).input_ids) for part in ("cat " * 75, "dog " * 20)]
    assert torch.equal(ours, torch.cat(parts, dim=1))


def test_the_shorter_prompt_is_padded_with_an_empty_one(model: Model) -> None:
    nothing = alone(model, tokenize(model, "").input_ids)
    for texts in (("cat " * 80, "the dog"), ("the dog", "cat " * 80)):
        conditioning = encode(model, *texts)
        sides = (conditioning.positive, conditioning.negative)
        short = sides[texts.index("the dog")]
        assert [side.shape[1] for side in sides] == [154, 154]
        assert torch.equal(
            short[:, :77],
            alone(model, tokenize(model, "the dog").input_ids),
        )
        assert torch.equal(short[:, 77:], nothing)


def test_weights_of_1_change_nothing(model: Model) -> None:
    for text in ("a (the cat:1) and (the:1.0)dog", r"a (the cat: 1.) \(and (the:1)dog\)"):
        plain = text.replace("(the cat:1)", "the cat").replace("(the cat: 1.)", "the cat")
        plain = plain.replace("(the:1.0)", "the").replace("(the:1)", "the").replace("\\", "")
        assert torch.equal(encode(model, text).positive, encode(model, plain, long=False).positive)


def test_weights_interpolate_from_an_empty_prompt(model: Model) -> None:
    plain = encode(model, "the cat and the dog")
    for weight in (0, 0.5, 1.3, 2):
        ours = encode(model, f"the cat (and the:{weight}) dog").positive
        assert tokenize(model, f"the cat (and the:{weight}) dog", long=True).weights[0, 3:7].ne(weight).sum() < 4
        changed = (ours != plain.positive).any(-1)[0].nonzero().flatten().tolist()
        assert set(changed) <= set(range(3, 7))
        line = plain.empty + weight * (plain.positive - plain.empty)
        torch.testing.assert_close(ours[0, changed], line[0, changed])
        assert changed


def test_weights_above_1_equal_compels(model: Model) -> None:
    weighing = compel.Compel(model.pipeline.tokenizer, model.pipeline.text_encoder)
    for weight, is_same in ((1.3, True), (0.5, False)):
        ours = encode(model, f"the (cat:{weight}) dog").positive
        assert torch.allclose(ours, weighing(f"the (cat){weight} dog"), atol=1e-5) == is_same


def test_without_long_weights_are_text(model: Model) -> None:
    text = "a (cat:1.3) of 16:9)"
    assert tokenize(model, text).input_ids.tolist() == [model.pipeline.tokenizer(text, padding="max_length").input_ids]
