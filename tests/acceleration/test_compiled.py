"""Compiled code, written and loaded again, on a CPU, of a part small enough for a test."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config
from torch._inductor.graph import GraphLowering
from torch._inductor.utils import fresh_cache

from aesthetic.acceleration import accelerate, modules
from aesthetic.acceleration.compiled import Compiled
from aesthetic.acceleration.graphed_personalizer import GraphedPersonalizer
from aesthetic.models.loading import Model
from aesthetic.personalizer import Personalizer
from aesthetic.pipeline import prompt
from tests.acceleration.recorder import EagerRecorder
from tests.original import difference

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ for a CPU, and there is none"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch uses its own deprecated functions
]


class Part(nn.Module):
    """A module with what Compiled reads of diffusers' modules."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.config = {"width": width, "_name_or_path": object()}
        self.layer = nn.Linear(width, width).requires_grad_(False)
        self.other = nn.Linear(width, width).requires_grad_(False)


def work(part: Any, x: Tensor) -> Tensor:
    result: Tensor = part.layer(x).sin()
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    Compiled(folder).make("part", work, Part(), [torch.ones(2, 4)])
    return folder


def test_compiled_code_is_found_by_its_shapes_and_fits_all_weights(folder: Path) -> None:
    compiled, part, x = Compiled(folder), Part(), torch.randn(2, 4)
    assert compiled
    code = compiled.find("part", part, [x])
    assert code is not None
    assert torch.allclose(code(part, x), work(part, x))
    for name, other, inputs in (
        ("part", part, [torch.ones(3, 4)]),
        ("part", part, [x.double()]),
        ("part", Part(5), [x]),
        ("other", part, [x]),
    ):
        assert compiled.find(name, other, inputs) is None


def test_gradients_of_trainable_parts_are_compiled_too(tmp_path: Path) -> None:
    part, x = Part(), torch.randn(2, 4)
    part.layer.requires_grad_(True)  # the others stay frozen
    Compiled(tmp_path).make("part", work, part, [x])
    code = Compiled(tmp_path).find("part", part, [x])
    assert code is not None
    ours, theirs = (torch.autograd.grad(one(part, x).sum(), list(part.layer.parameters())) for one in (code, work))
    assert all(torch.allclose(*pair) for pair in zip(ours, theirs, strict=True))


def test_the_compiled_personalization_equals_the_plain_one_and_adds_in_order(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[str] = []

    def look(source: str) -> None:
        assert config.deterministic
        assert not config.triton.autotune_pointwise
        sources.append(source)

    monkeypatch.setattr(GraphLowering, "save_output_code", look)
    monkeypatch.setattr(accelerate, "_folder", lambda: tmp_path)
    with fresh_cache():  # so that the code is compiled, not found
        accelerate.prepare(model, [])
    assert len(sources) == 2  # forward and backward
    assert not any("atomic_add" in source for source in sources)  # a GPU runs those in any order
    forward = modules._best("encoder", Compiled(tmp_path))
    target = nn.functional.normalize(torch.randn(1, model.dim))
    ours, theirs = GraphedPersonalizer(model.encoder, EagerRecorder(), forward), Personalizer(model.encoder)
    for text in ("the cat and the dog and the cat and the dog", "a cat", "the cat and the dog and the cat and the dog"):
        ids = prompt.tokenize_prompt(model.pipeline.tokenizer, text, model.device).input_ids
        *_, one = ours(ids, target, steps=5, lr=1e-3)
        *_, other = theirs(ids, target, steps=5, lr=1e-3)
        assert difference(one.conditioning, other.conditioning) <= 1e-5


def test_other_source_code_is_compiled_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Compiled(folder)
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"mended")
    assert not Compiled(folder)


def test_a_damaged_file_is_logged_and_left_out(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [path] = folder.glob("*/*.compiled")
    (tmp_path / path.parent.name).mkdir()
    (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes()[:1000])
    assert not Compiled(tmp_path)
    assert f"{path.name} can't be loaded" in caplog.text


def test_another_machines_code_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    [path] = folder.glob("*/*.compiled")
    (tmp_path / "another-gpu").mkdir()
    (tmp_path / "another-gpu" / path.name).write_bytes(path.read_bytes())
    assert not Compiled(tmp_path)
