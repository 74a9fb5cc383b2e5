"""Which aesthetic a request means: a name, a mix of names, or a file.

Directions made from images and phrases take a model: see pipeline/target.py.
"""

from collections.abc import Mapping
from pathlib import Path

from . import embedding, interpolation
from .embedding import Aesthetic
from .registry import Registry

__all__ = ["resolve"]


def resolve(
    registry: Registry,
    *,
    name: str | None = None,
    mix: Mapping[str, float] | None = None,
    file: Path | None = None,
    label: str | None = None,
    clip_space: str | None = None,
    dim: int | None = None,
) -> Aesthetic:
    """The weighted mix of named aesthetics, the aesthetic in a file, or the one called `name`.

    name:            None takes the default of the CLIP space.
    label:           what messages call the file; its own name if None.
    clip_space, dim: those of the model that has to follow it; None where they are not known yet.

    Raises RequestError for an unknown name or a mix that cancels out, and EmbeddingError for a file that is not an
    aesthetic and for an aesthetic of another CLIP space.
    """
    if mix:
        return _mixed(registry, mix, clip_space, dim)
    if file is not None:
        found = embedding.load_aesthetic(file, label=label)
    else:
        found = registry.load(name or registry.default(clip_space), clip_space)
    embedding.require_fit(found, clip_space=clip_space, dim=dim)
    return found


def _mixed(registry: Registry, weights: Mapping[str, float], clip_space: str | None, dim: int | None) -> Aesthetic:
    parts = [registry.load(name, clip_space) for name in weights]
    clip_space, dim = clip_space or parts[0].clip_space, dim or parts[0].dim
    for part in parts:
        embedding.require_fit(part, clip_space=clip_space, dim=dim)
    return Aesthetic(
        vector=interpolation.mix([part.vector for part in parts], list(weights.values())),
        name=" ".join(f"{name}:{weight}" for name, weight in weights.items()),
        sha256=embedding.digest_of(
            f"{part.sha256} {weight}" for part, weight in zip(parts, weights.values(), strict=True)
        ),
        source="mix",
        clip_space=clip_space,
    )
