"""The written-out loop compared with the plain one, in Triton's interpreter; test_gpu.py has it at full size."""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from aesthetic.acceleration import fast_personalizer
from aesthetic.acceleration.cuda_graphs import Graph, Result
from aesthetic.acceleration.fast_personalizer import FastPersonalizer, Parameters, TrainedEncoder, supports
from aesthetic.gradient import Step, similarity
from aesthetic.models.penultimate import PenultimateTextModel
from aesthetic.personalizer import Personalizer
from tests.acceleration.recorder import EagerRecorder
from tests.original import difference

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled there")

SHORT, ALL = 16, 32  # fewer tokens than in reality: the interpreter takes a second for a pass
START, END = 198, 199
CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 48,
    "vocab_size": 200,
    "max_position_embeddings": ALL - 3,  # CLIP's positions are three fewer than ALL, too
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": END,
}


class DirectRecorder(EagerRecorder):
    """Runs an action, which takes a second, when it is replayed, and not before that unless `eager`."""

    def __init__(self, *, eager: bool = False) -> None:
        super().__init__()
        self.eager = eager

    def record(self, action: Callable[[], Result]) -> Graph[Result]:
        """See Recorder.record."""
        if self.eager:
            action()
        graph: Any = SimpleNamespace(replay=action)
        return cast(Graph[Result], graph)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SHORT": SHORT, "ALL": ALL, "TERMS": 32}.items():
        monkeypatch.setattr(fast_personalizer, name, value)


def make(**changes: Any) -> Any:
    """An encoder whose biases and norms are not at their trivial start, which would hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CLIPTextModelWithProjection(CLIPTextConfig(**CONFIG | changes)).eval().requires_grad_(False)
        for weight in encoder.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return encoder


@cache
def encoder() -> Any:
    return make()


@cache
def fast() -> FastPersonalizer:
    """One for all tests: each may find what another left behind."""
    return FastPersonalizer(encoder(), DirectRecorder())


@cache
def target() -> Tensor:
    return functional.normalize(torch.randn(1, 48, generator=torch.Generator().manual_seed(1)))


def prompt(length: int, tokens: int = ALL - 3) -> Tensor:
    """A prompt of so many words, of which the last is the first, and another occurs twice."""
    words = [*range(10, 10 + length - 1), 10]
    words[3] = words[1]
    return torch.tensor([[START, *words, *[END] * (tokens - 1 - length)]])


def last(steps: Iterator[Step]) -> Step:
    *_, end = steps
    return end


@cache
def personalized() -> list[Step]:
    """The steps of a prompt whose end token is the last of the short pass."""
    steps = []
    for step in fast()(prompt(SHORT - 2), target(), steps=2, lr=1e-3):
        steps.append(step)
        if step.index:
            _ = step.conditioning  # it is kept
    return steps


def gradients(encoder: Any, ids: Tensor, room: int) -> Parameters:
    """Autograd's, of minus the similarity; a token that occurs twice has its gradient at its first place."""
    plain = copy.deepcopy(encoder)
    plain.text_model.requires_grad_(True)
    (-similarity(plain(ids).text_embeds, target())).backward()  # type: ignore[no-untyped-call]
    for weight in plain.text_model.parameters():
        weight.data = weight.grad
    found, tokens = Parameters(plain.config, torch.device("cpu")), plain.text_model.embeddings.token_embedding.weight
    found.fill(plain.text_model)
    for place, token in enumerate(ids[0].tolist()):
        if token not in ids[0, :place]:
            found.embeddings[room + place] = tokens[token].detach()
    return found


@pytest.mark.parametrize(("length", "bucket", "room"), [(7, SHORT, ALL), (38, 48, 48)])
def test_the_gradients_are_autograds(length: int, bucket: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_personalizer, "ALL", room)
    encoder = make(max_position_embeddings=room - 3)
    ids, trained = prompt(length, room - 3), TrainedEncoder(encoder)
    tape = trained.tape(1, bucket)
    trained.fill(encoder.text_model)
    trained.start(encoder.get_input_embeddings(), ids, torch.tensor([length + 1]), target()[0])
    trained.forward(tape)
    trained.backward(tape)  # with rates of 0: no weight moves, and Adam's first moment is a tenth of the gradient
    found, expected = trained._trained[1], gradients(encoder, ids, room)
    for layer, theirs in zip(found.layers[:-1], expected.layers[:-1], strict=True):
        for name, gradient in vars(layer).items():
            assert difference(10 * gradient, getattr(theirs, name)) < 1e-5, name
    assert difference(10 * found.layers[-1].norm1, expected.layers[-1].norm1) < 1e-5
    for one, other in zip(torch.split(found.embeddings, room), torch.split(expected.embeddings, room), strict=True):
        assert torch.allclose(10 * one, other, rtol=0, atol=1e-5 * expected.embeddings.norm().item())


def test_every_step_is_the_plain_loops() -> None:
    theirs = Personalizer(encoder())(prompt(SHORT - 2), target(), steps=2, lr=1e-3)
    for index, (ours, other) in enumerate(zip(personalized(), theirs, strict=True)):
        assert ours.index == index
        assert torch.allclose(ours.similarity, other.similarity, rtol=0, atol=1e-6)
        if index:
            assert ours.conditioning.shape == other.conditioning.shape
            assert difference(ours.conditioning, other.conditioning) < 1e-5


def test_the_steps_of_a_longer_prompt_compute_all_tokens() -> None:
    ours, theirs = (
        next(run(prompt(SHORT - 1), target(), steps=1, lr=1e-3)) for run in (fast(), Personalizer(encoder()))
    )
    assert torch.allclose(ours.similarity, theirs.similarity, rtol=0, atol=1e-6)
    assert difference(ours.conditioning, theirs.conditioning) < 1e-6


def test_the_trained_weights_can_be_written_to_an_encoder() -> None:
    ids, found = prompt(7), copy.deepcopy(encoder())
    end = last(fast()(ids, target(), steps=1, lr=1e-2))
    fast().write(found.text_model)
    assert difference(found(ids).last_hidden_state, end.conditioning) < 1e-5
    assert difference(encoder()(ids).last_hidden_state, end.conditioning) > 1e-2
    rows = [one.text_model.embeddings.token_embedding.weight for one in (found, encoder())]
    changed = (rows[0] != rows[1]).any(1).nonzero().flatten().tolist()
    assert changed == torch.unique(ids).tolist()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, that something is not finite
def test_runs_are_independent_of_one_another() -> None:
    before = [weight.clone() for weight in encoder().parameters()]
    run = fast()(prompt(7), -target(), steps=9, lr=1e30)
    first = next(run)
    assert not next(run).similarity.isfinite()  # then abandoned
    with pytest.raises(RuntimeError, match="before the next step"):
        _ = first.conditioning
    again, expected = last(fast()(prompt(SHORT - 2), target(), steps=1, lr=1e-3)), personalized()[1]
    assert torch.equal(again.conditioning, expected.conditioning)
    assert all(torch.equal(*pair) for pair in zip(encoder().parameters(), before, strict=True))


def test_a_run_is_not_resumed_after_another() -> None:
    run = fast()(prompt(7), target(), steps=2, lr=1e-3)
    next(run)
    next(fast()(prompt(9), target(), steps=1, lr=1e-3))
    with pytest.raises(RuntimeError, match="another run has begun"):
        next(run)


def test_the_same_encoder_has_the_same_personalizer() -> None:
    assert fast().of(encoder()) is fast()  # so that its weights are captured once


def test_no_steps_give_the_untouched_encoder() -> None:
    [only], plain = fast()(prompt(7), target(), steps=0, lr=1.0), encoder()(prompt(7))
    assert only.index == 0
    assert difference(only.conditioning, plain.last_hidden_state) < 1e-6
    assert torch.allclose(only.similarity, similarity(plain.text_embeds, target()), rtol=0, atol=1e-6)


def test_the_text_ends_where_transformers_finds_its_end() -> None:
    legacy = make(eos_token_id=2)  # as in the files of Stable Diffusion: at the highest token
    [only] = FastPersonalizer(legacy, DirectRecorder())(prompt(7), target(), steps=0, lr=1.0)
    expected = similarity(legacy(prompt(7)).text_embeds, target())
    assert torch.allclose(only.similarity, expected, rtol=0, atol=1e-6)


UNFIT = [
    ("hidden_act", "relu"),
    ("hidden_size", 96),
    ("intermediate_size", 96),
    ("num_attention_heads", 8),
    ("max_position_embeddings", ALL + 1),
]


@pytest.mark.parametrize(("name", "value"), UNFIT)
def test_encoders_of_other_shapes_take_the_plain_loop(name: str, value: Any) -> None:
    other = make(**{name: value})
    assert supports(encoder())
    assert not supports(other)
    ours, theirs = (
        last(run(prompt(7), target(), steps=2, lr=1e-3))
        for run in (FastPersonalizer(other, EagerRecorder()), Personalizer(other))
    )
    assert torch.equal(ours.conditioning, theirs.conditioning)


def test_stable_diffusion_xl_is_conditioned_on_the_state_before_the_last_layer() -> None:
    xl, plain = make(), encoder()
    weights, xl.text_model = xl.text_model.state_dict(), PenultimateTextModel(xl.config).requires_grad_(False)
    xl.text_model.load_state_dict(weights)
    ours, theirs, others = (
        last(run(prompt(7), target(), steps=1, lr=1e-3))
        for run in (FastPersonalizer(xl, DirectRecorder()), Personalizer(xl), Personalizer(plain))
    )
    assert torch.allclose(ours.similarity, others.similarity, rtol=0, atol=1e-6)
    assert difference(ours.conditioning, theirs.conditioning) < 1e-5
    assert difference(ours.conditioning, others.conditioning) > 0.1


def test_a_long_prompt_in_chunks_with_another_gelu() -> None:
    openclip = make(hidden_act="gelu")
    chunks = torch.cat([prompt(7), prompt(ALL - 6)])
    run = FastPersonalizer(openclip, DirectRecorder())
    ours, theirs = (last(steps(chunks, target(), steps=1, lr=1e-3)) for steps in (run, Personalizer(openclip)))
    assert run._plain.cache_info().currsize == 0
    assert torch.allclose(ours.similarity, theirs.similarity, rtol=0, atol=1e-6)
    assert difference(ours.conditioning, theirs.conditioning) < 1e-5


def test_another_encoder_shares_the_memory() -> None:
    other = make(attention_dropout=0.5)  # which changes nothing here
    other.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5)
    ours, theirs = (next(run(prompt(7), target(), steps=1, lr=1e-3)) for run in (fast().of(other), Personalizer(other)))
    assert difference(ours.conditioning, theirs.conditioning) < 1e-6


def test_a_short_prompt_may_follow_a_long_one() -> None:
    run = FastPersonalizer(encoder(), DirectRecorder(eager=True))
    list(run(prompt(SHORT + 5), target(), steps=0, lr=1e-3))  # ends where the next prompt has no token
    ours, theirs = (next(steps(prompt(7), target(), steps=1, lr=1e-3)) for steps in (run, fast()))
    assert torch.equal(ours.similarity, theirs.similarity)
