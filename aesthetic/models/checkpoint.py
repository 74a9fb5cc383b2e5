"""Find the complete local snapshot that a name in weights/manifest.json, or a path, means.

Nothing is downloaded or loaded here: download.py fetches and verifies snapshots, loading.py loads them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import INCOMPLETE, CheckpointError
from . import single_file
from .manifest import Source, missing, read_manifest

__all__ = ["BASE", "CLIP", "Snapshot", "locate"]

BASE = "stable-diffusion-v1-5"  # configuration, tokenizer and safety checker of the models that are a single file
CLIP = "clip-vit-large-patch14"  # the projection and vision tower of the whole Stable Diffusion 1.x family
KINDS = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")  # the second has the same parts


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A Stable Diffusion model on the disk, and the CLIP that belongs to it.

    revision:   from the manifest; "local" for a model given by its path.
    bundled:    whether it comes with the checkout.
    clip_space: its CLIP space; None for a model given by its path, whose weights tell.
    folder:     the model in diffusers' layout.
    file:       weights in a single file in the original layout; `folder` is then that of `BASE`, for all other parts.
    clip:       the snapshot of OpenAI's CLIP, for models without their own projection and vision tower; None if it has
                not been downloaded.
    openai_clip_space: the name of the CLIP space of `clip`.
    """

    name: str
    revision: str
    bundled: bool
    clip_space: str | None
    folder: Path
    clip: Path | None
    openai_clip_space: str
    file: Path | None = None


def locate(model: str | None, weights: Path) -> Snapshot:
    """The snapshot to draw with.

    model:   a name in the manifest, the path of a folder in diffusers' layout, or that of a .safetensors file in the
             original one; blank takes the first model of the manifest that is there: Stable Diffusion where it has
             been downloaded, else the demo.
    weights: the folder of the manifest and the snapshots.

    Raises CheckpointError, saying what to do, if it is not there in full.
    """
    manifest = read_manifest(weights)
    models = [name for name, source in manifest.items() if "model_index.json" in source.files]
    clip = weights / CLIP
    has_clip = CLIP in manifest and not missing(clip, manifest[CLIP])
    if not model:
        model = _default(models, manifest, weights)
    file, source = None, manifest[model] if model in models else None
    folder = weights / model if source else Path(model)
    if source is not None:
        _require(folder, model, source)
    elif folder.is_file():
        folder, file = weights / BASE, folder
        single_file.require_stable_diffusion_1(file)
        if BASE not in manifest or missing(folder, manifest[BASE]):
            raise CheckpointError(
                f"{file} is a model in a single file, and the rest (tokenizer, configuration, safety checker) is "
                f"{BASE}'s, which is not there in full: run script/download-weights {BASE}"
            )
    elif not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"there is no model {model!r}: give a name ({', '.join(models)}) "
            "or the path of a folder with a model_index.json, or of a .safetensors file"
        )
    else:
        _require_kind(folder)
    return Snapshot(
        name=file.stem if file else folder.resolve().name,
        revision=source.revision if source else "local",
        bundled=source is not None and source.bundled,
        clip_space=source.clip_space if source else None,
        folder=folder,
        clip=clip if has_clip else None,
        openai_clip_space=(manifest[CLIP].repo_id if CLIP in manifest else None) or CLIP,
        file=file,
    )


def _default(models: Sequence[str], manifest: Mapping[str, Source], weights: Path) -> str:
    """The first model that is there; if there is none, the bundled one, which is the easiest to restore."""
    present = [name for name in models if not missing(weights / name, manifest[name])]
    bundled = [name for name in models if manifest[name].bundled]
    return next(iter([*present, *bundled, *models]), "")


def _require_kind(folder: Path) -> None:
    """Raise CheckpointError, which names the kind, unless a snapshot in diffusers' layout is a text-to-image model."""
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / 'model_index.json'} names no pipeline of diffusers: {error}") from error
    if kind not in KINDS:
        raise CheckpointError(f"{folder} is a {kind}; Stable Diffusion 1.x or 2.x, a {KINDS[0]}, was expected")


def _require(folder: Path, name: str, source: Source) -> None:
    absent = missing(folder, source)
    if absent:
        mend = INCOMPLETE.format(folder) if source.bundled else "run script/download-weights"
        raise CheckpointError(
            f"{name} is not in {folder}, or not all of it ({absent[0]} and {len(absent) - 1} other files "
            f"are missing or cut short): {mend}"
        )
