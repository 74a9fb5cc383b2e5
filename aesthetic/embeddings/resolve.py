"""Which aesthetic is meant: a name, a path, a mix, or the inputs of a request, but for those that take a model.

pipeline/target.py averages images and turns a target towards a phrase.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from ..errors import EmbeddingError, RequestError
from . import embedding, interpolation
from .embedding import Aesthetic
from .registry import Registry, is_path

__all__ = ["load_aesthetic", "mix", "resolve"]


def load_aesthetic(source: str | Path) -> Aesthetic:
    """The aesthetic called `source`, or the one in a .pt or .safetensors file.

    source: a path if it is a Path or `is_path`; otherwise a name of the index.

    Raises RequestError for an unknown name; EmbeddingError for a named aesthetic that has not been downloaded, and for
    a file that is missing or does not hold one vector of finite floats.
    """
    if isinstance(source, Path) or is_path(source):
        return embedding.load_aesthetic(Path(source))
    return Registry().load(source)


def mix(weights: Mapping[Aesthetic | str | Path, float]) -> Aesthetic:
    """The weighted sum of aesthetics of one CLIP space, with unit norm. A negative weight steers away.

    weights: of each aesthetic, or of what `load_aesthetic` takes, as {"fantasy": 0.7, mine: -0.2}.

    Raises RequestError if `weights` is empty or not finite, or the sum has no direction, EmbeddingError if the CLIP
    spaces differ, and
    what `load_aesthetic` raises.
    """
    if not weights:
        raise RequestError("a mix takes one aesthetic or more")
    if not all(map(math.isfinite, weights.values())):
        raise RequestError(f"the weights of a mix must be finite, not {[*weights.values()]}")
    parts = [part if isinstance(part, Aesthetic) else load_aesthetic(part) for part in weights]
    if len({part.dim for part in parts}) > 1 or len({part.clip_space for part in parts} - {None}) > 1:
        found = ", ".join(f"{part.name} ({part.clip_space or 'not named'}, {part.dim} dimensions)" for part in parts)
        raise EmbeddingError(f"aesthetics of different CLIP spaces can't be mixed: {found}")
    weighted = list(zip(parts, weights.values(), strict=True))
    return Aesthetic(
        vector=interpolation.mix([part.vector for part in parts], list(weights.values())),
        name=" ".join(f"{part.name}:{weight}" for part, weight in weighted),
        sha256=embedding.digest_of(f"{part.sha256} {weight}" for part, weight in weighted),
        source="mix",
        clip_space=next((part.clip_space for part in parts if part.clip_space), None),
    )


def resolve(
    registry: Registry,
    *,
    name: str | None = None,
    weights: Mapping[str, float] | None = None,
    file: Path | None = None,
    label: str | None = None,
    clip_space: str | None = None,
    dim: int | None = None,
) -> Aesthetic:
    """The weighted mix of named aesthetics, the aesthetic in a file, or the one called `name`.

    name:            None is the default of the CLIP space.
    weights:         of the mix, by name.
    label:           the file's name in messages; None is its own.
    clip_space, dim: of the model that has to follow it; None if not known yet.

    Raises RequestError for an unknown name or a mix without a direction, EmbeddingError for a file without an aesthetic
    and for an aesthetic of another CLIP space.
    """
    if weights:
        found = mix({registry.load(part, clip_space): weight for part, weight in weights.items()})
    elif file is not None:
        found = embedding.load_aesthetic(file, label=label)
    else:
        found = registry.load(name or registry.default(clip_space), clip_space)
    embedding.require_fit(found, clip_space=clip_space, dim=dim)
    return found
