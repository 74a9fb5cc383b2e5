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

from ..errors import INCOMPLETE, CheckpointError, EmbeddingError, RequestError
from ..settings import home

if TYPE_CHECKING:
    from .embedding import Aesthetic

__all__ = ["Entry", "Registry"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the index. `default`: what a model of this space follows if nothing else is asked for."""

    file: str  # in the folder of the index
    sha256: str
    clip_space: str
    made_of: str
    url: str | None = None
    default: bool = False


class Registry:
    """The named aesthetics of one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        """Read `folder`/index.json, by default that of the embeddings of `home`. Raises CheckpointError without it."""
        folder = folder or home() / "embeddings"
        index = folder / "index.json"
        if not index.is_file():
            raise CheckpointError(f"there is no {index}: the checkout is incomplete")
        self.folder = folder
        entries = json.loads(index.read_text(encoding="utf-8"))
        self.entries: Mapping[str, Entry] = {name: Entry(**entry) for name, entry in entries.items()}

    def path(self, name: str) -> Path:
        """Where the file of `name` is, or belongs once it has been downloaded."""
        return self.folder / self.entries[name].file

    def names(self, clip_space: str | None = None) -> list[str]:
        """The aesthetics that a model of CLIP space `clip_space` can follow; all of them for None."""
        return [name for name, entry in self.entries.items() if clip_space in (None, entry.clip_space)]

    def load(self, name: str, clip_space: str | None = None) -> "Aesthetic":
        """The aesthetic called `name`, for a model of CLIP space `clip_space` if that is known.

        Raises RequestError for an unknown name, EmbeddingError if it is one of another space, or if its file is not
        there or not the one that the index describes.
        """
        if name not in self.entries:
            raise RequestError(f"there is no aesthetic {brief(name)}; {self._choice(clip_space)}")
        entry, path = self.entries[name], self.path(name)
        if clip_space not in (None, entry.clip_space):
            raise EmbeddingError(
                f"the aesthetic {name} was made in the CLIP space {entry.clip_space}, and the model works in "
                f"{clip_space}: {self._choice(clip_space)}"
            )
        if not path.is_file():
            state = "is missing" if entry.url is None else "has not been downloaded"
            raise EmbeddingError(f"the aesthetic {name} {state}: {self._remedy(name)}")
        from . import embedding  # and torch with it, which who only wants the list need not wait for

        aesthetic = embedding.load_aesthetic(path, name)
        if aesthetic.sha256 != entry.sha256:
            raise EmbeddingError(
                f"{path} has the sha256 {aesthetic.sha256}, and the index says {entry.sha256}: {self._remedy(name)}"
            )
        return replace(aesthetic, clip_space=entry.clip_space, source="name")

    def default(self, clip_space: str | None) -> str:
        """The name of the aesthetic that models of a CLIP space follow if nothing else is asked for.

        Raises RequestError if the space has none.
        """
        for name, entry in self.entries.items():
            if entry.default and entry.clip_space == clip_space:
                return name
        raise RequestError(
            f"the CLIP space {clip_space} has no default aesthetic: give aesthetic_embedding, "
            "aesthetic_embedding_file or aesthetic_images, or set aesthetic_steps to 0"
        )

    def _choice(self, clip_space: str | None) -> str:
        """What there is to choose from."""
        names = self.names(clip_space)
        if not names:
            return "no named aesthetic fits this model: give aesthetic_embedding_file or aesthetic_images"
        return f"{'there are' if clip_space is None else 'this model can follow'} {', '.join(names)}"

    def _remedy(self, name: str) -> str:
        """What to do about a file that is not there or is another one."""
        return INCOMPLETE.format(self.path(name)) if self.entries[name].url is None else "run script/download-weights"
