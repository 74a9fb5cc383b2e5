"""Aesthetics by name."""

import json
import shutil
from pathlib import Path

import pytest

from aesthetic.embeddings.registry import Registry
from aesthetic.errors import CheckpointError, EmbeddingError, RequestError
from tests import snapshot
from tests.conftest import published

SPACE = "openai/clip-vit-large-patch14"
OURS = Registry(snapshot.ROOT / "embeddings")


@pytest.fixture
def two_spaces(home: Path, tmp_path: Path) -> Registry:
    """The published ones, and one of another space that comes with the checkout."""
    folder = shutil.copytree(home / "embeddings", tmp_path / "embeddings")
    index = json.loads((folder / "index.json").read_text())
    index["ink"] = {"file": "ink.pt", "sha256": "0" * 64, "clip_space": "elsewhere", "made_of": "ink", "default": True}
    snapshot.write_json(folder / "index.json", index)
    return Registry(folder)


@pytest.mark.parametrize("name", OURS.names(SPACE))
def test_the_index_knows_the_published_files(name: str, tmp_path: Path) -> None:
    shutil.copy(OURS.folder / "index.json", tmp_path)
    shutil.copy(published(name), tmp_path)
    aesthetic = Registry(tmp_path).load(name)
    assert aesthetic.name == name
    assert aesthetic.clip_space == SPACE
    assert aesthetic.vector.shape == (1, 768)


def test_every_entry_is_pinned() -> None:
    for entry in OURS.entries.values():
        assert len(entry.sha256) == 64
        assert entry.url is None or "30ca347d39eb7c92dd651a513cf4f795ed995708" in entry.url
        assert (entry.url is None) == (entry.clip_space != SPACE)
        assert entry.made_of


def test_each_clip_space_has_one_default(two_spaces: Registry) -> None:
    for registry in (OURS, two_spaces):
        defaults = [entry.clip_space for entry in registry.entries.values() if entry.default]
        assert sorted(defaults) == sorted({entry.clip_space for entry in registry.entries.values()})
    assert OURS.default(SPACE) == "sac_8plus"
    assert two_spaces.default("elsewhere") == "ink"
    with pytest.raises(RequestError, match="the CLIP space nowhere has no default aesthetic"):
        OURS.default("nowhere")


def test_an_aesthetic_has_the_clip_space_of_the_index(home: Path) -> None:
    registry = Registry(home / "embeddings")
    found = registry.load("fantasy")
    assert (found.clip_space, found.source, found.name) == (registry.entries["fantasy"].clip_space, "name", "fantasy")


def test_an_unknown_name_lists_the_known_ones(home: Path) -> None:
    with pytest.raises(RequestError, match="there is no aesthetic 'nonsense'; there are sac_8plus, laion_7plus"):
        Registry(home / "embeddings").load("nonsense")


def test_a_name_that_does_not_fit_the_model_lists_those_that_do(two_spaces: Registry) -> None:
    assert two_spaces.names("elsewhere") == ["ink"]
    with pytest.raises(
        EmbeddingError,
        match=rf"fantasy was made in the CLIP space {SPACE}, and the model works in elsewhere: this model .* ink$",
    ):
        two_spaces.load("fantasy", "elsewhere")
    with pytest.raises(
        EmbeddingError, match=rf"space elsewhere, and the model works in {SPACE}: .* sac_8plus, laion_7"
    ):
        two_spaces.load("ink", SPACE)
    with pytest.raises(RequestError, match=r"there is no aesthetic 'nonsense'; this model can follow ink$"):
        two_spaces.load("nonsense", "elsewhere")
    with pytest.raises(
        RequestError, match="'nonsense'; no named aesthetic fits this model: give aesthetic_embedding_f"
    ):
        two_spaces.load("nonsense", "nowhere")


def test_a_bundled_file_is_not_to_be_downloaded(two_spaces: Registry) -> None:
    with pytest.raises(
        EmbeddingError, match=r"ink is missing: the checkout is incomplete, and git checkout -- .*ink\.pt"
    ):
        two_spaces.load("ink", "elsewhere")
    shutil.copy(two_spaces.path("fantasy"), two_spaces.path("ink"))
    with pytest.raises(EmbeddingError, match=r"and the index says 0000.* git checkout -- .*ink\.pt"):
        two_spaces.load("ink")


def test_a_missing_or_another_file_has_a_remedy(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "embeddings", tmp_path / "embeddings")
    registry = Registry(tmp_path / "embeddings")
    shutil.copy(registry.path("fantasy"), registry.path("gloomcore"))
    with pytest.raises(EmbeddingError, match=r"and the index says .* run script/download-weights"):
        registry.load("gloomcore")
    registry.path("gloomcore").unlink()
    with pytest.raises(EmbeddingError, match="gloomcore has not been downloaded: run script/download-weights"):
        registry.load("gloomcore")


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Registry(tmp_path)
