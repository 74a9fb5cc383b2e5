"""The replayed loop compared with the plain one, without a GPU (see recorder.py); test_gpu.py has one."""

import pytest
import torch

from aesthetic.acceleration.graphed_personalizer import GraphedPersonalizer
from aesthetic.gradient import Step
from aesthetic.models.loading import Model
from aesthetic.personalizer import Personalizer
from aesthetic.pipeline import prompt
from tests.acceleration.recorder import EagerRecorder
from tests.original import difference

TEXTS = ("the cat", "a dog", "the cat and the dog")


@pytest.fixture(scope="module")
def target(model: Model) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(1, model.dim, generator=torch.Generator().manual_seed(1)))


def tokens(model: Model, *texts: str) -> torch.Tensor:
    return torch.cat([prompt.tokenize_prompt(model.pipeline.tokenizer, text, model.device).input_ids for text in texts])


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[:2], TEXTS])
def test_every_stop_is_the_plain_loops(model: Model, target: torch.Tensor, texts: tuple[str, ...]) -> None:
    ids = tokens(model, *texts)
    ours = list(GraphedPersonalizer(model.encoder, EagerRecorder())(ids, target, steps=4, lr=1e-3))
    theirs = list(Personalizer(model.encoder)(ids, target, steps=4, lr=1e-3))
    assert [step.index for step in ours] == [0, 1, 2, 3, 4]
    for one, other in zip(ours, theirs, strict=True):
        assert difference(one.conditioning, other.conditioning) <= 1e-5
        assert torch.allclose(one.similarity, other.similarity, atol=1e-5)


def test_each_run_starts_from_the_untouched_weights(model: Model, target: torch.Tensor) -> None:
    recorder = EagerRecorder()
    personalizer = GraphedPersonalizer(model.encoder, recorder)
    before = [weight.clone() for weight in model.encoder.parameters()]

    def run(text: str, *, lr: float, steps: int = 3) -> Step:
        *_, last = personalizer(tokens(model, text), target, steps=steps, lr=lr)
        return last

    first = run("the cat", lr=1e-3)
    next(iter(personalizer(tokens(model, "a dog"), target, steps=9, lr=0.1)))  # then abandoned
    run("a dog", lr=0.1)
    list(personalizer(tokens(model, "the cat", "a dog"), target, steps=1, lr=0.1))
    assert torch.equal(run("the cat", lr=1e-3).conditioning, first.conditioning)
    assert not torch.equal(run("the cat", lr=1e-2).conditioning, first.conditioning)
    assert recorder.recorded == 4  # a step and a forward pass, for one chunk and for two
    assert all(torch.equal(*pair) for pair in zip(model.encoder.parameters(), before, strict=True))


def test_no_steps_give_the_untouched_encoder(model: Model, target: torch.Tensor) -> None:
    ids = tokens(model, "the cat")
    [only] = GraphedPersonalizer(model.encoder, EagerRecorder())(ids, target, steps=0, lr=1.0)
    assert torch.equal(only.conditioning, model.encoder(ids).last_hidden_state)
