"""Words to tokens to conditioning."""

import torch
from diffusers import StableDiffusionPipeline

from aesthetic import prompt
from aesthetic.pipeline import Model
from tests.snapshot import MODEL


def test_encoding_is_the_plain_pipelines(model: Model, home: object) -> None:
    plain = StableDiffusionPipeline.from_pretrained(f"{home}/weights/{MODEL}", variant="fp16")
    ours = prompt.encode(model, "the cat", "the dog")
    with torch.no_grad():
        positive, negative = plain.encode_prompt("the cat", "cpu", 1, True, "the dog")
    assert torch.equal(ours.positive, positive)
    assert torch.equal(ours.negative, negative)


def test_tokens_are_padded_and_framed(model: Model) -> None:
    tokens = prompt.tokenize(model, "the cat")
    start, end = (model.pipeline.tokenizer.convert_tokens_to_ids(f"<|{name}oftext|>") for name in ("start", "end"))
    assert tokens.input_ids.shape == (1, 77)
    assert tokens.input_ids[0, 0] == start
    assert tokens.input_ids[0, 3:].eq(end).all()
    assert tokens.lost == ""


def test_what_does_not_fit_is_lost_and_known(model: Model) -> None:
    assert prompt.tokenize(model, "cat " * 75).lost == ""
    assert prompt.tokenize(model, "cat " * 75 + "dog").lost == "dog"
    tokens = prompt.tokenize(model, "cat " * 75 + "dog the")
    assert tokens.lost == "dog the"
    assert tokens.input_ids.shape == (1, 77)
