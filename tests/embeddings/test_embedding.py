"""Aesthetics in files: the published ones, our own, and other content with the same suffix."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from aesthetic.embeddings import embedding, torch_pickle
from aesthetic.embeddings.embedding import Aesthetic
from aesthetic.errors import EmbeddingError
from tests.conftest import published

NAMES = ("aivazovsky", "cloudcore", "fantasy", "flower_plant", "gloomcore", "glowwave", "laion_7plus", "sac_8plus")


def refusal(path: Path) -> str:
    with pytest.raises(EmbeddingError) as error:
        embedding.load_aesthetic(path)
    return str(error.value)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_all_published_embeddings_load(name: str) -> None:
    path = published(name)
    aesthetic = embedding.load_aesthetic(path, name)
    assert aesthetic.vector.shape == (1, 768)
    assert aesthetic.vector.dtype == torch.float32
    assert aesthetic.vector.norm().item() == pytest.approx(1, abs=1e-6)
    assert aesthetic.vector.device.type == "cpu"
    raw = torch.load(path, map_location="cpu", weights_only=True).double().reshape(1, -1)
    torch.testing.assert_close(aesthetic.vector, (raw / raw.norm()).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(768,), (1, 768), (1,), (8192,)])
def test_any_float_type_and_either_shape_load(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    vector = embedding.load_aesthetic(saved(tmp_path / "a.pt", torch.randn(shape).to(dtype))).vector
    assert vector.shape == (1, shape[-1])
    assert vector.dtype == torch.float32
    assert vector.norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "dtype"), [(60000.0, torch.float16), (1e300, torch.float64), (5e-324, torch.float64)]
)
def test_extreme_values_have_a_direction(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    vector = embedding.load_aesthetic(saved(tmp_path / "a.pt", torch.full((768,), value, dtype=dtype))).vector
    assert vector.norm().item() == pytest.approx(1, abs=1e-6)


def test_a_parameter_is_a_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", torch.nn.Parameter(torch.randn(8)))
    assert not embedding.load_aesthetic(path).vector.requires_grad


def test_saved_and_read_again(tmp_path: Path) -> None:
    vector, path = torch.randn(1, 24), tmp_path / "mine.safetensors"
    embedding.save_aesthetic(path, vector, {"space": "somewhere", "pictures": "12"})
    aesthetic = embedding.load_aesthetic(path)
    torch.testing.assert_close(aesthetic.vector, vector / vector.norm())
    assert aesthetic.clip_space == "somewhere"
    assert aesthetic.notes["pictures"] == "12"
    assert aesthetic.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert aesthetic.name == aesthetic.sha256[:12]


def test_the_first_bytes_tell_the_kind_not_the_name(tmp_path: Path) -> None:
    torch.save(torch.randn(8), tmp_path / "upload.bin")
    embedding.save_aesthetic(tmp_path / "upload", torch.randn(1, 8), {})
    assert [embedding.load_aesthetic(tmp_path / name).dim for name in ("upload.bin", "upload")] == [8, 8]


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.tensor([1.0, float("nan"), float("inf")]), "2 values that are not finite"),
        (torch.zeros(1, 768), "only zeros"),
        (torch.randn(2, 768), "a tensor [2, 768]"),
        (torch.tensor(1.0), "a tensor []"),
        (torch.randn(0), "a tensor [0]"),
        (torch.randn(8193), "a tensor [8193]"),
        (torch.randn(1, 1, 768), "a tensor [1, 1, 768]"),
        (torch.zeros(1).expand(10**9), "a tensor [1000000000]"),
        (torch.arange(768), "a tensor of torch.int64"),
        (torch.randn(768, dtype=torch.complex64), "a tensor of torch.complex64"),
        (torch.randn(768).to(torch.float8_e4m3fn), "a pickled object of 'torch._utils._rebuild_tensor_v3'"),
        (torch.randn(768, device="meta"), "a pickled object of 'torch._utils._rebuild_meta_tensor_no_storage'"),
        (torch.randn(768).to_sparse(), "a pickled object of 'torch._utils._rebuild_sparse_tensor'"),
        ({"string_to_param": {"*": torch.randn(1, 768)}}, "a textual inversion"),
        (OrderedDict({"<cat>": torch.randn(768)}), "a textual inversion"),
        (torch.nn.Linear(768, 1).state_dict(), "a dictionary that begins with 'weight'"),
        ({3: torch.randn(768)}, "a dictionary, and it was not opened"),
        ({}, "a dictionary, and it was not opened"),
        ([torch.randn(768)], "a list"),
        ("text", "a str"),
    ],
)
def test_refuses_other_content(tmp_path: Path, content: object, found: str) -> None:
    message = refusal(saved(tmp_path / "a.pt", content))
    assert f"a.pt holds {found}" in message
    assert "one tensor [D] or [1, D] of finite floats that are not all zero was expected" in message


def test_nothing_in_a_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(saved(tmp_path / "a.pt", Bomb()))
    assert f"a.pt holds a pickled object of '{os.name}.system', and it was not opened" in message
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Bomb()))
    assert "neither a .safetensors file nor a .pt file" in refusal(tmp_path / "b.pt")
    assert not (tmp_path / "ran").exists()
    # Unpickled without checks, the same file runs its command.
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_refuses_missing_empty_and_large_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert "there is no file" in refusal(path)
    path.write_bytes(b"")
    assert refusal(path) == "a.pt is empty; a .pt or .safetensors file of a few kB was expected"
    path.write_text("just some text")
    assert "a.pt is neither a .safetensors file nor a .pt file" in refusal(path)
    with path.open("wb") as file:
        file.truncate(100 * 10**6)
    size = "100,000,000 bytes, and at most 1,000,000 are read"
    assert f"a.pt has {size}: it is of an unknown kind; a .pt or .safetensors file of a few kB was" in refusal(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"layers.0.weight": torch.zeros(10**6)}, "the layers of an MLP, as improved-aesthetic-predictor's"),
        ([torch.zeros(10**6)], "a list"),
        ({"unet.conv_in.weight": torch.zeros(10**6)}, "a dictionary that begins with 'unet.conv_in.weight'"),
    ],
)
def test_a_file_that_is_too_large_says_what_it_is(tmp_path: Path, content: object, kind: str) -> None:
    assert f"are read: it is {kind}; a .pt or" in refusal(saved(tmp_path / "a.pt", content))


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    torch.save(torch.randn(768), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "a.pt was saved by torch before 1.6, or in its format: save it again" in refusal(tmp_path / "a.pt")
    torch.save(torch.zeros(10**6), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "it is a file of torch before 1.6;" in refusal(tmp_path / "a.pt")
    safetensors.torch.save_file({"x": torch.zeros(10**6)}, tmp_path / "a.safetensors")
    assert "it is a .safetensors file;" in refusal(tmp_path / "a.safetensors")
    (tmp_path / "a.bin").write_bytes(pickle.dumps(bytes(2 * 10**6)))
    assert "it is a pickle;" in refusal(tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", bytes(2 * 10**6))
    assert "it is a zip archive;" in refusal(tmp_path / "a.zip")


@given(st.binary(max_size=200), st.binary(max_size=30), st.integers(0, 2**16 - 1))
def test_any_start_of_a_file_has_a_kind(
    tmp_path_factory: pytest.TempPathFactory, program: bytes, name: bytes, extra: int
) -> None:
    """The first bytes of a zip archive may promise anything, and so may the program of a pickle."""
    path = tmp_path_factory.mktemp("start") / "a"
    for start in (b"PK\x03\x04".ljust(26, b"\0") + len(name).to_bytes(2, "little") + extra.to_bytes(2, "little") + name,
                  b"PK\x03\x04".ljust(26, b"\0") + b"\x0a\0\0\0/data.pkl\0"[:-1]):  # fmt: skip
        path.write_bytes(start + program)
        assert torch_pickle.kind(path).isprintable()


def repacked(path: Path, content: object, old: bytes = b"", new: bytes = b"") -> Path:
    """What torch.save writes, compressed, and with `new` in the place of `old`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as records, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in records.infolist():
            archive.writestr(info.filename, records.read(info).replace(old, new))
    return path


def test_refuses_a_pt_file_that_unpacks_to_a_large_one(tmp_path: Path) -> None:
    path = repacked(tmp_path / "a.pt", torch.zeros(10**8 // 4))
    assert path.stat().st_size < torch_pickle.MAX_BYTES
    assert "a.pt unpacks to more than 1000 kB" in refusal(path)


def test_a_tensor_from_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    path = repacked(tmp_path / "a.pt", torch.ones(8), b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    with zipfile.ZipFile(path) as archive:
        assert any(b"cuda:0" in archive.read(info) for info in archive.infolist())
    assert embedding.load_aesthetic(path).vector.device.type == "cpu"


def pickled(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3")
    return path


@pytest.mark.parametrize(
    "program",
    [
        # A dictionary whose key takes 2^64 steps to hash, a gigabyte of zeros, and a tuple of tuples of tuples.
        b"\x80\x02})q\x00" + b"h\x00\x86q\x00" * 64 + b"K\x01s.",
        b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.",
        b"\x80\x02)q\x00" + b"h\x00\x86q\x00" * 64 + b".",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n)R.",
    ],
)
def test_a_pickle_that_demands_time_or_memory_is_not_opened(
    tmp_path: Path, program: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    assert "a.pt holds " in refusal(pickled(tmp_path / "a.pt", program))


def test_the_pickle_that_is_checked_is_the_one_that_is_opened(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", torch.ones(8))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02N.")
    assert "was not written by torch.save" in refusal(path)


def test_a_damaged_file_is_not_quoted_at_length(tmp_path: Path) -> None:
    text = json.dumps({"aesthetic": {"dtype": "\x1b[31m" + "x" * 10**5, "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"0000")
    message = refusal(tmp_path / "a.safetensors")
    assert len(message) < 200
    assert message.isprintable()


def test_refuses_safetensors_with_anything_else_in_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"emb_params": torch.randn(1, 768)}, path)
    assert "holds 1 tensors ('emb_params' [1, 768]), and one named 'aesthetic' was expected" in refusal(path)
    safetensors.torch.save_file({"aesthetic": torch.randn(768), "more": torch.randn(768)}, path)
    assert "holds 2 tensors" in refusal(path)


@given(at=st.integers(0, 5000), new=st.binary(min_size=1, max_size=8), kind=st.sampled_from(["pt", "safetensors"]))
def test_damage_of_any_kind_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, new: bytes, kind: str
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a"
    buffer = io.BytesIO()
    torch.save(torch.ones(1, 64), buffer)
    whole = buffer.getvalue() if kind == "pt" else safetensors.torch.save({"aesthetic": torch.ones(1, 64)})
    at %= len(whole)
    path.write_bytes(whole[:at] + new + whole[at + len(new) :])
    try:
        aesthetic = embedding.load_aesthetic(path)
    except EmbeddingError:
        return
    assert aesthetic.vector.norm().item() == pytest.approx(1, abs=1e-5)


def test_the_mean_is_of_the_raw_features_however_they_are_batched() -> None:
    features = torch.randn(10, 24) * 7
    expected = features.mean(dim=0, keepdim=True)
    for size in (1, 3, 10):
        torch.testing.assert_close(embedding.mean(torch.split(features, size)), expected, rtol=1e-6, atol=1e-6)


def test_the_mean_loses_nothing_to_the_number_of_batches() -> None:
    features = [torch.tensor([[2.0**24]]), *[torch.tensor([[1.0]])] * 7]
    assert embedding.mean(features).item() == torch.tensor((2**24 + 7) / 8).item()


def aesthetic(width: int, clip_space: str | None) -> Aesthetic:
    return Aesthetic(vector=torch.ones(1, width), name="mine", sha256="", clip_space=clip_space)


def test_another_width_and_another_space_name_both_sides() -> None:
    embedding.require_fit(aesthetic(24, "here"), clip_space="here", dim=24)
    embedding.require_fit(aesthetic(24, None), clip_space="here", dim=24)
    with pytest.raises(
        EmbeddingError, match=r"mine has 768 dimensions \(CLIP space 'there'\), the model's CLIP space here has 24"
    ):
        embedding.require_fit(aesthetic(768, "there"), clip_space="here", dim=24)
    with pytest.raises(EmbeddingError, match="mine was made in the CLIP space 'there', and the model works in here"):
        embedding.require_fit(aesthetic(24, "there"), clip_space="here", dim=24)
