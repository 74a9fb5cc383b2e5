"""From a name in weights/manifest.json, or a path, to a local snapshot that is all there.

The manifest names every snapshot with its revision and the sha256 of every file. download.py fetches those that
do not come with the checkout, and verifies all; nothing here reaches for the network, and nothing here loads a model.
A model in a single file is one of ldm.py's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..settings import DOWNLOAD, INCOMPLETE, find
from . import single_file
from .manifest import Source, missing, read_manifest

__all__ = ["BASE", "CLIP", "Snapshot", "locate", "openai_clip_space"]

BASE = "stable-diffusion-v1-5"  # configuration, tokenizer and safety checker of the models that are a single file
CLIP = "clip-vit-large-patch14"  # the projection and vision tower of the whole Stable Diffusion 1.x family
KINDS = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")  # the second has the same parts


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A Stable Diffusion model on the disk, in diffusers' layout, and the CLIP that goes with it.

    revision:   as the manifest has it; "local" for what was given by its path.
    bundled:    whether it comes with the checkout.
    space:      the CLIP space that it draws in; None for what was given by its path: its weights will tell.
    file:       its weights, where they are one file in the original layout; `folder` is then `BASE`, for all else.
    clip:       the snapshot of OpenAI's CLIP, for models that don't bring a projection and a vision tower of
                their own; None where it has not been downloaded.
    openai_clip_space: what the CLIP space of `clip` is called.
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
    folder = find(weights / model) if source else Path(model)
    if source is not None:
        _require(folder, model, source)
    elif folder.is_file():
        folder, file = weights / BASE, folder
        single_file.require_stable_diffusion_1(file)
        if BASE not in manifest or missing(folder, manifest[BASE]):
            raise CheckpointError(
                f"{file} is a model in a single file, and the rest (tokenizer, configuration, safety checker) is "
                f"{BASE}'s, which is not there in full: run {DOWNLOAD} {BASE}"
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
        openai_clip_space=openai_clip_space(manifest),
        file=file,
    )


def openai_clip_space(manifest: Mapping[str, Source]) -> str:
    """The name of the CLIP space of the snapshot called `CLIP`."""
    return (manifest[CLIP].repo_id if CLIP in manifest else None) or CLIP


def _default(models: Sequence[str], manifest: Mapping[str, Source], weights: Path) -> str:
    """The first model that is there. If none is, the one that should have come with the checkout: less to mend."""
    present = [name for name in models if not missing(find(weights / name), manifest[name])]
    bundled = [name for name in models if manifest[name].bundled]
    return next(iter([*present, *bundled, *models]), "")


def _require_kind(folder: Path) -> None:
    """Raise CheckpointError, saying what it is, unless a snapshot in diffusers' layout draws from words alone."""
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / 'model_index.json'} names no pipeline of diffusers: {error}") from error
    if kind not in KINDS:
        raise CheckpointError(f"{folder} is a {kind}; Stable Diffusion 1.x or 2.x, a {KINDS[0]}, was expected")


def _require(folder: Path, name: str, source: Source) -> None:
    absent = missing(folder, source)
    if absent:
        mend = INCOMPLETE.format(folder) if source.bundled else f"run {DOWNLOAD}"
        raise CheckpointError(
            f"{name} is not in {folder}, or not all of it ({absent[0]} and {len(absent) - 1} other files "
            f"are missing or cut short): {mend}"
        )
