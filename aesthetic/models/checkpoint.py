"""Find the local snapshot that a name in weights/manifest.json, or a path, means, and check that it is whole."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .. import settings
from ..errors import CheckpointError
from ..settings import DOWNLOAD, INCOMPLETE, find
from . import single_file
from .manifest import Source, missing, read_manifest

__all__ = ["CLIP", "OPENAI_SPACE", "Snapshot", "locate", "verified"]

BASE = "stable-diffusion-v1-5"  # gives a model in a single file its tokenizer; 1.x also configuration, safety checker
CLIP = "clip-vit-large-patch14"  # gives all models of the Stable Diffusion 1.x family projection and vision tower
OPENAI_SPACE = "openai/clip-vit-large-patch14"  # the CLIP space of `CLIP`
# The second has the same parts as the first. XL's image-to-image pipeline is its refiner's, which has one text encoder.
KINDS = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionXLPipeline")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A Stable Diffusion model on the disk, and the CLIP that belongs to it.

    revision:   from the manifest; "local" for a model given by its path.
    bundled:    whether it comes with the checkout.
    clip_space: its CLIP space; None for a model given by its path, it is then read from the weights.
    folder:     the model in diffusers' layout.
    file:       weights in a single file in the original layout; `folder` is then that of `BASE`, for what it lacks.
    clip:       the snapshot `CLIP`, for models without their own projection and vision tower; None if not downloaded.
    digests:    the sha256 of its files from the manifest, by path; none of a model given by its path.
    """

    name: str
    revision: str
    bundled: bool
    clip_space: str | None
    folder: Path
    clip: Path | None
    file: Path | None = None
    digests: Mapping[Path, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def reference(self) -> str:
        """What `locate` finds it by, from any folder: its name, or the path of a local one."""
        return str((self.file or self.folder).resolve()) if self.revision == "local" else self.folder.name


def locate(model: str | None = None, weights: Path | None = None) -> Snapshot:
    """The snapshot to draw with.

    model:   a name in the manifest, the path of a folder in diffusers' layout, or that of a .safetensors file in the
             original one; AESTHETIC_MODEL if None or blank. If that is unset, too, the first complete model of the
             manifest: Stable Diffusion where it has been downloaded, else the demo.
    weights: the folder of the manifest and the snapshots; None is that of `settings.home`.

    Raises CheckpointError, with the remedy, for a missing or incomplete snapshot.
    """
    weights = weights or settings.home() / "weights"
    manifest = read_manifest(weights)
    models = {name: source for name, source in manifest.items() if "model_index.json" in source.files}
    model = model or settings.model() or _default(models, weights)
    source, path, file = models.get(model), Path(model), None
    if source is not None:
        folder = find(weights / model)
        _require(folder, model, source)
    elif path.is_file():
        folder, file = weights / BASE, path
        _require_single_file(file, folder, manifest)
    else:
        folder = path
        _require_folder(folder, models)
    has_clip = CLIP in manifest and not missing(weights / CLIP, manifest[CLIP])
    digests = {} if source is None else _digests(folder, source)
    if has_clip and (source is None or source.clip_space == OPENAI_SPACE):
        digests |= _digests(weights / CLIP, manifest[CLIP])
    return Snapshot(
        name=file.stem if file else folder.resolve().name,
        revision=source.revision if source else "local",
        bundled=source is not None and source.bundled,
        clip_space=source.clip_space if source else None,
        folder=folder,
        clip=weights / CLIP if has_clip else None,
        file=file,
        digests=digests,
    )


@contextmanager
def verified(snapshot: Snapshot) -> Iterator[None]:
    """Compare the digests of all files, in threads beside what the block does with them: one bit changes every image.

    Raises CheckpointError for a damaged file, also in place of what the block raises.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(_sha256, snapshot.digests)
        try:
            yield
        finally:
            wrong = [
                path for path, digest in zip(snapshot.digests, found, strict=True) if digest != snapshot.digests[path]
            ]
            if wrong:
                mend = INCOMPLETE.format(wrong[0]) if snapshot.bundled else f"run {DOWNLOAD}"
                raise CheckpointError(f"{wrong[0]} is damaged: its sha256 is not that in weights/manifest.json; {mend}")


def _digests(folder: Path, source: Source) -> dict[Path, str]:
    return {folder / name: file.sha256 for name, file in source.files.items() if file.confirmed}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _default(models: Mapping[str, Source], weights: Path) -> str:
    """The first complete model, else the bundled one, which is the easiest to restore, else any."""
    present = [name for name, source in models.items() if not missing(find(weights / name), source)]
    bundled = [name for name, source in models.items() if source.bundled]
    return next(iter([*present, *bundled, *models]), "")


def _require_single_file(file: Path, base: Path, manifest: Mapping[str, Source]) -> None:
    single_file.require_stable_diffusion(file)
    if BASE not in manifest or missing(base, manifest[BASE]):
        raise CheckpointError(
            f"{file} is a model in a single file, which takes its tokenizer and more from {BASE}, and that is missing "
            f"or incomplete: run {DOWNLOAD} {BASE}"
        )


def _require_folder(folder: Path, models: Iterable[str]) -> None:
    """Raise CheckpointError unless a snapshot in diffusers' layout is a text-to-image model."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise CheckpointError(
            f"there is no model {str(folder)!r}: give a name ({', '.join(models)}) "
            "or the path of a folder with a model_index.json, or of a .safetensors file"
        )
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{index} names no pipeline of diffusers: {error}") from error
    if kind not in KINDS:
        raise CheckpointError(
            f"{folder} is a {kind}; Stable Diffusion 1.x or 2.x, a {KINDS[0]}, or XL, a {KINDS[-1]}, was expected"
        )


def _require(folder: Path, name: str, source: Source) -> None:
    absent = missing(folder, source)
    if absent:
        mend = INCOMPLETE.format(folder) if source.bundled else f"run {DOWNLOAD}"
        raise CheckpointError(
            f"{name} is not in {folder} or incomplete ({absent[0]} and {len(absent) - 1} other files are missing or "
            f"cut short): {mend}"
        )
