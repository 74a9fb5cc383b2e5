"""LAION's aesthetic predictor with random weights, and other files in its place."""

import io
import json
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aesthetic.embeddings import torch_pickle
from aesthetic.errors import CheckpointError
from aesthetic.evaluation import aesthetic_score
from tests.snapshot import ROOT, write_json

DIM = 24


def state(**changes: Any) -> dict[str, Tensor]:
    return {"weight": torch.randn(1, DIM), "bias": torch.randn(1), **changes}


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        aesthetic_score.load_predictor(path, DIM)
    return str(error.value)


def test_it_scores_as_the_original_does(tmp_path: Path) -> None:
    """As in the README of LAION-AI/aesthetic-predictor."""
    layer, features = nn.Linear(DIM, 1), torch.randn(3, DIM) * 7
    found = aesthetic_score.load_predictor(saved(tmp_path / "head.pth", layer.state_dict()), DIM)
    with torch.no_grad():
        theirs = layer(features / features.norm(dim=-1, keepdim=True)).flatten().tolist()
    assert [found.score(one[None]) for one in features] == pytest.approx(theirs, abs=1e-6)
    assert len(set(theirs)) == 3


def from_a_gpu(path: Path) -> Path:
    """Rewrite a file of torch.save as if it had been saved from a GPU."""
    with zipfile.ZipFile(path) as records:
        files = {info.filename: records.read(info) for info in records.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"))
    return path


def test_a_layer_is_read_however_it_was_saved(tmp_path: Path) -> None:
    layer = nn.Linear(DIM, 1)
    on_gpu = from_a_gpu(saved(tmp_path / "gpu", layer.state_dict()))
    assert b"cuda:0" in on_gpu.read_bytes()
    for path in (
        on_gpu,
        saved(tmp_path / "parameters", dict(layer.named_parameters())),
        saved(tmp_path / "reversed", OrderedDict(bias=layer.bias.data, weight=layer.weight.data)),
        saved(tmp_path / "double", {name: weight.double() for name, weight in layer.state_dict().items()}),
    ):
        found = aesthetic_score.load_predictor(path, DIM)
        assert torch.equal(found.weight, layer.weight.data)
        assert torch.equal(found.bias, layer.bias.data)
        assert found.weight.dtype == found.bias.dtype == torch.float32
        assert not found.weight.requires_grad


class MLP(nn.Module):
    """As in simple_inference.py of christophschuhmann/improved-aesthetic-predictor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        first = [nn.Linear(dim, 1024), nn.Dropout(), nn.Linear(1024, 128), nn.Dropout(), nn.Linear(128, 64)]
        self.layers = nn.Sequential(*first, nn.Dropout(), nn.Linear(64, 16), nn.Linear(16, 1))


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (state(weight=torch.randn(1, DIM + 1)), "another weight"),
        (state(weight=torch.randn(DIM)), "another weight"),
        (state(weight=torch.zeros(1).expand(10**9)), "another weight"),
        (state(weight=torch.ones(1, DIM, dtype=torch.int64)), "another weight"),
        (state(weight=torch.full((1, DIM), torch.nan)), "another weight"),
        (state(bias=torch.tensor([torch.inf])), "another bias"),
        (state(bias=torch.tensor(1.0)), "another bias"),
        (state(bias="text"), "another bias"),
        (state(more=torch.ones(1)), "['weight', 'bias', 'more']"),
        ({"weight": torch.randn(1, DIM)}, "['weight']"),
        (torch.randn(1, DIM), "a Tensor"),
        ("text", "a str"),
        ([torch.randn(1, DIM), torch.randn(1)], "a list, and it was not opened"),
        (nn.Sequential(nn.Linear(DIM, 1)).state_dict(), "['0.weight', '0.bias']"),
        (MLP(DIM).state_dict(), "the layers of an MLP, as improved-aesthetic-predictor's, and it was not opened"),
        (nn.Linear(DIM, 1), "a pickled object of 'torch.nn.modules.linear.Linear', and it was not opened"),
        (
            state(bias=Bomb()),
            f"a dictionary that begins with 'weight' with a pickled object of '{os.name}.system', and it was "
            "not opened",
        ),
    ],
)
def test_anything_but_such_a_layer_is_refused(
    tmp_path: Path, content: object, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(saved(tmp_path / "head.pth", content))
    assert f"head.pth holds {found}; a weight [1, 24] and a bias [1] of finite floats were expected" in message
    assert "run script/download-weights laion-aesthetic-predictor, or remove the file" in message
    assert not Path("ran").exists()


def test_empty_text_and_oversized_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    path.write_bytes(b"")
    assert "head.pth is empty; a weight" in refusal(path)
    for data in (b"some text", b"PK\x03\x04"):
        path.write_bytes(data)
        assert "head.pth was not written by torch.save, or is damaged" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head/data.pkl", b"\0" * 2 * torch_pickle.MAX_BYTES)
    assert "head.pth unpacks to more than 1000 kB" in refusal(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (MLP(768).state_dict(), "the layers of an MLP, as improved-aesthetic-predictor's"),
        (MLP(768), "a pickled object of 'tests.evaluation.test_aesthetic_score.MLP'"),
    ],
)
def test_a_file_that_is_too_large_is_not_called_damaged(tmp_path: Path, content: object, kind: str) -> None:
    path = saved(tmp_path / "sac+logos+ava1-l14-linearMSE.pth", content)
    size = path.stat().st_size
    assert 3.6e6 < size < 3.8e6
    message = refusal(path)
    assert (
        f"linearMSE.pth has {size:,} bytes, and at most 1,000,000 are read: it is {kind}; a weight [1, 24]" in message
    )


def test_the_format_of_old_torch_versions_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "head.pth", state(), _use_new_zipfile_serialization=False)
    assert "head.pth was saved by torch before 1.6, or in its format" in refusal(path)


@pytest.mark.parametrize(
    "program",
    [
        # Dictionaries whose key takes 2^30 and 5^15 steps to hash, the second of tuples in place of a name.
        b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 30 + b"K\x01s.",
        b"\x80\x02}X\x01\0\0\0aq\x00)q\x00" + b"(h\x00h\x00h\x00h\x00h\x00tq\x00" * 15 + b"K\x01s.",
        b"\x80\x02" + b"}" * 160 + b".",
    ],
)
def test_an_expensive_pickle_is_not_opened(tmp_path: Path, program: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    with zipfile.ZipFile(tmp_path / "head.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3")
    assert re.search("holds (something|a dictionary).*, and it was not opened", refusal(tmp_path / "head.pth"))


@given(at=st.integers(0, 5000), new=st.binary(min_size=1, max_size=8))
def test_damage_of_any_kind_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, new: bytes
) -> None:
    buffer = io.BytesIO()
    torch.save(nn.Linear(DIM, 1).state_dict(), buffer)
    whole, path = buffer.getvalue(), tmp_path_factory.mktemp("damaged") / "head.pth"
    at %= len(whole)
    path.write_bytes(whole[:at] + new + whole[at + len(new) :])
    try:
        found = aesthetic_score.load_predictor(path, DIM)
    except CheckpointError:
        return
    assert (found.weight.shape, found.bias.shape) == ((1, DIM), (1,))


def test_a_downloaded_predictor_is_located(tmp_path: Path) -> None:
    manifest = json.loads((ROOT / "weights" / "manifest.json").read_text())
    write_json(tmp_path / "manifest.json", manifest)
    assert aesthetic_score.locate(tmp_path) is None
    path = tmp_path / aesthetic_score.NAME / "sa_0_4_vit_l_14_linear.pth"
    path.parent.mkdir()
    path.touch()
    assert aesthetic_score.locate(tmp_path) == path
    write_json(tmp_path / "manifest.json", {})
    assert aesthetic_score.locate(tmp_path) is None
