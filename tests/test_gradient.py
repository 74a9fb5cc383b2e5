"""The loop equals that of the original code, and each run starts from the original weights."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from aesthetic.gradient import personalize, similarity
from aesthetic.models.loading import Model
from aesthetic.personalizer import Personalizer
from aesthetic.pipeline import prompt
from aesthetic.service import Service
from tests import original
from tests.original import difference

TABLE = "text_model.embeddings.token_embedding"
STEPS = (0, 1, 5, 20)
RATES = (1e-4, 3e-3)


@pytest.fixture
def tokens(model: Model) -> Tensor:
    return prompt.tokenize_prompt(model.pipeline.tokenizer, "a painting of the cat", model.device).input_ids


@pytest.fixture
def target(service: Service) -> Tensor:
    return service.registry.load("sac_8plus").vector


@pytest.mark.parametrize("lr", RATES)
@pytest.mark.parametrize("steps", STEPS)
def test_equals_the_original_loop(
    model: Model, clip: CLIPModel, tokens: Tensor, target: Tensor, steps: int, lr: float
) -> None:
    *_, last = Personalizer(model.encoder)(tokens, target, steps=steps, lr=lr)
    theirs = original.conditioning(clip, tokens, target, steps=steps, lr=lr)
    assert last.index == steps
    assert difference(last.conditioning, theirs) <= 1e-5


def test_rounding_in_fp32_grows_with_the_rate(demo: Service) -> None:
    tokens, target = (
        prompt.tokenize_prompt(demo.model.pipeline.tokenizer, "a castle", demo.model.device).input_ids,
        demo.registry.load("night").vector,
    )
    exact = Personalizer(copy.deepcopy(demo.model.encoder).double())
    errors = []
    for lr in (1e-4, 1e-3):
        *_, rounded = Personalizer(demo.model.encoder)(tokens, target, steps=10, lr=lr)
        *_, last = exact(tokens, target.double(), steps=10, lr=lr)
        errors.append(difference(rounded.conditioning.double(), last.conditioning))
    assert errors[0] < 3e-6
    assert 2 * errors[0] < errors[1] < 1e-4


def test_the_comparison_can_fail(model: Model, clip: CLIPModel, tokens: Tensor, target: Tensor) -> None:
    *_, last = Personalizer(model.encoder)(tokens, target, steps=5, lr=1e-4)
    theirs = original.conditioning(clip, tokens, target, steps=5, lr=1.01e-4)
    assert difference(last.conditioning, theirs) > 1e-5


def test_every_stop_is_the_end_of_a_shorter_run(model: Model, tokens: Tensor, target: Tensor) -> None:
    personalizer = Personalizer(model.encoder)
    stops = list(personalizer(tokens, target, steps=5, lr=1e-3))
    for steps, stop in enumerate(stops):
        *_, last = personalizer(tokens, target, steps=steps, lr=1e-3)
        assert torch.equal(stop.conditioning, last.conditioning)
        assert torch.equal(stop.similarity, last.similarity)


def test_similarity_rises(model: Model, tokens: Tensor, target: Tensor) -> None:
    cosines = [step.similarity.item() for step in Personalizer(model.encoder)(tokens, target, steps=5, lr=1e-3)]
    assert cosines == sorted(cosines)
    assert cosines[0] < cosines[-1]


def test_similarity_is_the_cosine() -> None:
    text, aesthetic = torch.randn(3, 24), torch.nn.functional.normalize(torch.randn(1, 24))
    expected = torch.nn.functional.cosine_similarity(text, aesthetic)
    torch.testing.assert_close(similarity(text, aesthetic), expected)


def test_an_abandoned_run_leaves_nothing_behind(model: Model, tokens: Tensor, target: Tensor) -> None:
    before = {name: weight.clone() for name, weight in model.encoder.state_dict().items()}
    personalizer = Personalizer(model.encoder)
    *_, expected = personalizer(tokens, target, steps=4, lr=1e-3)
    for stops in range(4):
        abandoned = personalizer(tokens, target, steps=4, lr=0.1)
        for _ in range(stops + 1):
            next(abandoned)
        *_, last = personalizer(tokens, target, steps=4, lr=1e-3)
        assert torch.equal(last.conditioning, expected.conditioning)
    assert all(torch.equal(weight, before[name]) for name, weight in model.encoder.state_dict().items())


def test_works_under_no_grad_and_restores_it(model: Model, tokens: Tensor, target: Tensor) -> None:
    *_, expected = Personalizer(model.encoder)(tokens, target, steps=2, lr=1e-3)
    with torch.no_grad():
        steps = []
        for step in Personalizer(model.encoder)(tokens, target, steps=2, lr=1e-3):
            assert not torch.is_grad_enabled()
            steps.append(step)
    assert torch.equal(steps[-1].conditioning, expected.conditioning)


def test_only_the_text_model_is_trained_and_gradients_are_freed(model: Model, tokens: Tensor, target: Tensor) -> None:
    personalizer = Personalizer(model.encoder)
    list(personalizer(tokens, target, steps=2, lr=1e-3))
    moved, pristine = personalizer._working.state_dict(), model.encoder.state_dict()
    assert torch.equal(moved["text_projection.weight"], pristine["text_projection.weight"])
    for name in ("final_layer_norm.weight", "embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.bias"):
        assert not torch.equal(moved[f"text_model.{name}"], pristine[f"text_model.{name}"])
    assert all(weight.grad is None for weight in personalizer._working.parameters())


@pytest.mark.parametrize("lr", RATES)
def test_training_the_rows_of_a_prompt_is_training_the_whole_table(
    model: Model, tokens: Tensor, target: Tensor, lr: float
) -> None:
    chunks = torch.cat(
        [tokens, prompt.tokenize_prompt(model.pipeline.tokenizer, "the dog and the dog", model.device).input_ids]
    )
    everything = copy.deepcopy(model.encoder)
    everything.get_submodule("text_model").requires_grad_(True)
    expected = personalize(everything, chunks, target, steps=5, lr=lr)
    for ours, theirs in zip(Personalizer(model.encoder)(chunks, target, steps=5, lr=lr), expected, strict=True):
        assert torch.equal(ours.conditioning, theirs.conditioning)
        assert torch.equal(ours.similarity, theirs.similarity)


def test_a_row_moves_as_it_would_in_the_table_and_the_others_would_not(
    model: Model, tokens: Tensor, target: Tensor
) -> None:
    everything = copy.deepcopy(model.encoder)
    everything.get_submodule("text_model").requires_grad_(True)
    list(personalize(everything, tokens, target, steps=3, lr=1e-3))
    moved, pristine = (one.get_submodule(TABLE).weight for one in (everything, model.encoder))
    personalizer = Personalizer(model.encoder)
    list(personalizer(tokens, target, steps=3, lr=1e-3))
    assert torch.equal(personalizer._working.get_submodule(TABLE)(tokens), everything.get_submodule(TABLE)(tokens))
    others = torch.ones(len(pristine), dtype=torch.bool).index_fill(0, tokens.flatten(), False)
    assert torch.equal(moved[others], pristine[others])
    assert not torch.equal(moved[~others], pristine[~others])


def test_prompts_of_different_lengths_in_turn(model: Model, tokens: Tensor, target: Tensor) -> None:
    personalizer = Personalizer(model.encoder)
    *_, expected = personalizer(tokens, target, steps=2, lr=1e-3)
    list(
        personalizer(
            torch.cat([tokens, prompt.tokenize_prompt(model.pipeline.tokenizer, "a dog", model.device).input_ids]),
            target,
            steps=2,
            lr=1e-3,
        )
    )
    *_, last = personalizer(tokens, target, steps=2, lr=1e-3)
    assert torch.equal(last.conditioning, expected.conditioning)


def test_the_copy_has_no_table(model: Model) -> None:
    weights = dict(Personalizer(model.encoder)._working.named_parameters())
    assert weights.keys() == dict(model.encoder.named_parameters()).keys()
    assert weights[f"{TABLE}.weight"].numel() == 0
