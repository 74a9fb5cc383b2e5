"""Aesthetics by name: embeddings/index.json and the files beside it. models/download.py fetches those with a URL."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING

from ..errors import CheckpointError, EmbeddingError, RequestError
from ..settings import DOWNLOAD, INCOMPLETE, find, home

if TYPE_CHECKING:
    from .embedding import Aesthetic

__all__ = ["Entry", "Registry", "is_path"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One aesthetic of the index."""

    file: str  # in the folder of the index
    sha256: str
    clip_space: str
    made_of: str
    url: str | None = None  # None for files that are bundled
    default: bool = False  # whether models of this CLIP space follow it unless another is given


def is_path(name_or_path: str) -> bool:
    """Whether a text means an aesthetic's file, since it has a folder in it or a known suffix, or else its name."""
    path = Path(name_or_path)
    return path.suffix in (".pt", ".safetensors") or len(path.parts) > 1


class Registry:
    """The named aesthetics of one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        """Read `folder`/index.json; None is `home`/embeddings. Raises CheckpointError if it is missing."""
        folder = folder or home() / "embeddings"
        index = find(folder / "index.json")
        if not index.is_file():
            raise CheckpointError(f"there is no {index}: {INCOMPLETE.format(index)}")
        self.folder = folder
        entries = json.loads(index.read_text(encoding="utf-8"))
        self.entries: Mapping[str, Entry] = {name: Entry(**entry) for name, entry in entries.items()}

    def path(self, name: str) -> Path:
        """The path of an aesthetic's file, which may not have been downloaded."""
        return find(self.folder / self.entries[name].file)

    def names(self, clip_space: str | None = None) -> list[str]:
        """The aesthetics of a CLIP space; None gives all."""
        return [name for name, entry in self.entries.items() if clip_space in (None, entry.clip_space)]

    def present(self, clip_space: str) -> list[str]:
        """Those of `names` whose files are there."""
        return [name for name in self.names(clip_space) if self.path(name).is_file()]

    def find(self, name: str, clip_space: str | None = None) -> Entry:
        """The entry of `name`, for a model of CLIP space `clip_space` if that is known.

        Raises RequestError for an unknown name, EmbeddingError for one of another space or without its file.
        """
        if name not in self.entries:
            raise RequestError(f"there is no aesthetic {brief(name)}; {self._choice(clip_space)}")
        entry = self.entries[name]
        if clip_space not in (None, entry.clip_space):
            raise EmbeddingError(
                f"the aesthetic {name} was made in the CLIP space {entry.clip_space}, and the model works in "
                f"{clip_space}: {self._choice(clip_space)}"
            )
        if not self.path(name).is_file():
            state = "is missing" if entry.url is None else "has not been downloaded"
            raise EmbeddingError(f"the aesthetic {name} {state}: {self._remedy(name)}")
        return entry

    def load(self, name: str, clip_space: str | None = None) -> "Aesthetic":
        """The aesthetic called `name`. Raises as `find`, and EmbeddingError if the index describes another file."""
        entry, path = self.find(name, clip_space), self.path(name)
        from . import embedding  # imports torch, which a list of names does not need

        aesthetic = embedding.load_aesthetic(path, name)
        if aesthetic.sha256 != entry.sha256:
            raise EmbeddingError(
                f"{path} has the sha256 {aesthetic.sha256}, and the index says {entry.sha256}: {self._remedy(name)}"
            )
        return replace(aesthetic, clip_space=entry.clip_space, source="name")

    def default(self, clip_space: str | None) -> str:
        """The name of the default aesthetic of a CLIP space. Raises RequestError if it has none."""
        for name, entry in self.entries.items():
            if entry.default and entry.clip_space == clip_space:
                return name
        raise RequestError(
            f"the CLIP space {clip_space} has no default aesthetic: give aesthetic_embedding, "
            "aesthetic_embedding_file or aesthetic_images, or set aesthetic_steps to 0"
        )

    def _choice(self, clip_space: str | None) -> str:
        names = self.names(clip_space)
        if not names:
            return "no named aesthetic fits this model: give aesthetic_embedding_file or aesthetic_images"
        return f"{'there are' if clip_space is None else 'this model can follow'} {', '.join(names)}"

    def _remedy(self, name: str) -> str:
        return INCOMPLETE.format(self.path(name)) if self.entries[name].url is None else f"run {DOWNLOAD}"
