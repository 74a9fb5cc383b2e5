"""weights/manifest.json: every snapshot with its revision, and the size and sha256 of every file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..settings import find

__all__ = ["File", "Source", "missing", "read_manifest"]


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a snapshot."""

    sha256: str
    bytes: int | None = None
    url: str | None = None  # for a file that is neither on the hub nor in the checkout
    confirmed: bool = True  # False for the sha256 of a sibling revision: the hub's metadata of the pinned one decides


@dataclass(frozen=True, kw_only=True)
class Source:
    """One entry of the manifest."""

    repo_id: str | None  # None for a snapshot that is not on the hub
    revision: str  # the full id of the commit; for a bundled snapshot, its version
    license: str
    files: Mapping[str, File]
    clip_space: str | None = None  # of a model, to refuse an aesthetic of another one before the model is loaded

    @property
    def bundled(self) -> bool:
        """Whether the snapshot comes with the checkout and is never downloaded."""
        return self.repo_id is None and all(file.url is None for file in self.files.values())


def read_manifest(weights: Path) -> dict[str, Source]:
    """`weights`/manifest.json. Raises CheckpointError if it is missing."""
    path = find(weights / "manifest.json")
    if not path.is_file():
        raise CheckpointError(f"there is no {path}: AESTHETIC_HOME must hold weights/ and embeddings/")
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Source(**{**entry, "files": {file: File(**facts) for file, facts in entry["files"].items()}})
        for name, entry in entries.items()
    }


def missing(folder: Path, source: Source) -> list[str]:
    """The files of `source` that are not in `folder`, or differ in size from the manifest."""
    return [
        name
        for name, file in source.files.items()
        if not (folder / name).is_file() or (file.bytes is not None and (folder / name).stat().st_size != file.bytes)
    ]
