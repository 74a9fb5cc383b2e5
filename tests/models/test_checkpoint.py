"""From a name or a path to a complete snapshot."""

import json
import re
import shutil
from pathlib import Path

import pytest

from aesthetic import settings
from aesthetic.errors import CheckpointError
from aesthetic.evaluation import aesthetic_score
from aesthetic.models import checkpoint
from aesthetic.models.manifest import read_manifest
from tests import snapshot
from tests.snapshot import CLIP, MODEL


@pytest.fixture
def weights(home: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(home / "weights", tmp_path / "weights")


def test_the_manifest_pins_every_file() -> None:
    manifest = read_manifest(snapshot.ROOT / "weights")
    assert list(manifest) == [MODEL, CLIP, "demo", aesthetic_score.NAME]
    assert [name for name, source in manifest.items() if source.bundled] == ["demo"]
    for source in manifest.values():
        assert source.bundled or re.fullmatch("[0-9a-f]{40}", source.revision)
        for name, file in source.files.items():
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.confirmed or (source.repo_id is not None and not name.endswith(".safetensors"))
            assert file.url is None or source.revision in file.url


def test_finds_a_model_by_name_and_by_default(weights: Path) -> None:
    for model in (MODEL, None, ""):
        found = checkpoint.locate(model, weights)
        assert (found.name, found.folder, found.clip) == (MODEL, weights / MODEL, weights / CLIP)
        assert found.revision == "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
        assert (found.clip_space, found.bundled) == ("openai/clip-vit-large-patch14", False)


def test_finds_a_model_by_path(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / MODEL, tmp_path / "tuned")
    found = checkpoint.locate(str(tmp_path / "tuned"), weights)
    assert (found.name, found.revision, found.clip) == ("tuned", "local", weights / CLIP)
    assert (found.clip_space, found.bundled) == (None, False)


def test_the_first_model_that_is_there_is_the_default(weights: Path) -> None:
    manifest = json.loads((weights / "manifest.json").read_text())
    (weights / "manifest.json").write_text(json.dumps({"not-here": manifest[MODEL], **manifest}))
    assert checkpoint.locate(None, weights).name == MODEL
    shutil.rmtree(weights / MODEL)
    with pytest.raises(CheckpointError, match=r"not-here is not in .* run script/download-weights"):
        checkpoint.locate(None, weights)


def test_the_bundled_model_is_the_default_until_another_is_downloaded(weights: Path) -> None:
    manifest = json.loads((weights / "manifest.json").read_text())
    manifest["small"] = manifest[MODEL] | {"repo_id": None, "clip_space": "its own"}
    (weights / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(weights / MODEL, weights / "small")
    assert checkpoint.locate(None, weights).name == MODEL
    (weights / MODEL / "model_index.json").unlink()
    found = checkpoint.locate(None, weights)
    assert (found.name, found.clip_space, found.bundled) == ("small", "its own", True)
    (weights / "small" / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"small is not in .* git checkout -- .*/weights/small mends it"):
        checkpoint.locate(None, weights)


def test_a_file_cut_short_is_missing(weights: Path) -> None:
    (weights / MODEL / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.fp16\.safetensors and 0 other files"):
        checkpoint.locate(MODEL, weights)


def test_an_incomplete_clip_is_left_out(weights: Path) -> None:
    (weights / CLIP / "config.json").unlink()
    assert checkpoint.locate(MODEL, weights).clip is None


def test_an_unknown_model_lists_the_known_ones(weights: Path) -> None:
    for nonsense in ("nonsense", CLIP, str(weights)):
        with pytest.raises(CheckpointError, match=rf"there is no model .*: give a name \({MODEL}\) or the path"):
            checkpoint.locate(nonsense, weights)


def test_the_predictor_is_not_a_model(weights: Path) -> None:
    real = json.loads((snapshot.ROOT / "weights" / "manifest.json").read_text())
    manifest = json.loads((weights / "manifest.json").read_text())
    (weights / "manifest.json").write_text(json.dumps({aesthetic_score.NAME: real[aesthetic_score.NAME], **manifest}))
    (weights / aesthetic_score.NAME).mkdir()
    for name in real[aesthetic_score.NAME]["files"]:
        (weights / aesthetic_score.NAME / name).write_bytes(b"some numbers")
    assert aesthetic_score.locate(weights) is not None
    assert checkpoint.locate(None, weights).name == MODEL
    with pytest.raises(CheckpointError, match=rf"there is no model .*: give a name \({MODEL}\) or the path"):
        checkpoint.locate(aesthetic_score.NAME, weights)
    (weights / MODEL / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=f"{MODEL} is not in .*"):
        checkpoint.locate(None, weights)


def test_home_is_the_checkout_unless_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settings.home() == snapshot.ROOT
    monkeypatch.setenv("AESTHETIC_HOME", str(tmp_path))
    assert settings.home() == tmp_path
    with pytest.raises(CheckpointError, match="AESTHETIC_HOME must hold weights/ and embeddings/"):
        read_manifest(tmp_path / "weights")
