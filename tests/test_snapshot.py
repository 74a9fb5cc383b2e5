"""The snapshots of the tests have the real ones' layout."""

import hashlib
import json
from pathlib import Path

import pytest

from tests import snapshot


@pytest.mark.parametrize("file", list(snapshot.CONFIGS))
def test_full_size_configurations_are_those_of_the_real_snapshot_to_the_byte(file: str) -> None:
    manifest = json.loads((snapshot.ROOT / "weights" / "manifest.json").read_text())
    text = json.dumps(snapshot.CONFIGS[file], indent=2) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == manifest[snapshot.MODEL]["files"][file]["sha256"]


def test_snapshots_are_the_same_each_time(home: Path, tmp_path: Path) -> None:
    snapshot.write_home(tmp_path)
    for manifest in ("weights/manifest.json", "embeddings/index.json"):
        assert (tmp_path / manifest).read_bytes() == (home / manifest).read_bytes()
