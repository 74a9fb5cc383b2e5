"""Aesthetics by name: embeddings/index.json and the files beside it.

An entry says which file it is, its sha256, the CLIP space it lives in, what it was made of, and, for those
that are not ours to hand on, the URL from which script/download-weights fetches it. Nothing is fetched here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING

from .errors import CheckpointError, EmbeddingError, RequestError

if TYPE_CHECKING:
    from .embedding import Aesthetic

__all__ = ["Entry", "Registry"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the index. `default`: what a model of this space follows if nothing else is asked for."""

    file: str  # in the folder of the index
    sha256: str
    space: str
    made_of: str
    url: str | None = None
    default: bool = False


class Registry:
    """The named aesthetics of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`/index.json. Raises CheckpointError if it is not there."""
        index = folder / "index.json"
        if not index.is_file():
            raise CheckpointError(f"there is no {index}: the checkout is incomplete")
        self.folder = folder
        entries = json.loads(index.read_text(encoding="utf-8"))
        self.entries: Mapping[str, Entry] = {name: Entry(**entry) for name, entry in entries.items()}

    def path(self, name: str) -> Path:
        """Where the file of `name` is, or belongs once it has been downloaded."""
        return self.folder / self.entries[name].file

    def read(self, name: str) -> "Aesthetic":
        """The aesthetic called `name`.

        Raises RequestError for an unknown name, EmbeddingError if its file has not been downloaded or is not
        the one that the index describes.
        """
        if name not in self.entries:
            raise RequestError(f"there is no aesthetic {brief(name)}; there are {', '.join(self.entries)}")
        entry, path = self.entries[name], self.path(name)
        if not path.is_file():
            raise EmbeddingError(f"the aesthetic {name} has not been downloaded: run script/download-weights")
        from . import embedding  # and torch with it, which who only wants the list need not wait for

        aesthetic = embedding.read(path, name)
        if aesthetic.sha256 != entry.sha256:
            raise EmbeddingError(
                f"{path} has the sha256 {aesthetic.sha256}, and the index says {entry.sha256}: "
                "delete it and run script/download-weights"
            )
        return replace(aesthetic, space=entry.space, source="name")

    def default(self, space: str) -> str:
        """The name of the aesthetic that models of a CLIP space follow if nothing else is asked for.

        Raises RequestError if the space has none.
        """
        for name, entry in self.entries.items():
            if entry.default and entry.space == space:
                return name
        raise RequestError(
            f"the CLIP space {space} has no default aesthetic: give aesthetic_embedding, "
            "aesthetic_embedding_file or aesthetic_images, or set aesthetic_steps to 0"
        )
