"""Aesthetics from images: the mean CLIP embedding, with notes on its origin."""

import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from ..cancellation import check
from ..embeddings import embedding
from ..embeddings.embedding import Aesthetic
from ..errors import CheckpointError, ImageError
from ..images import color, samples, user_images
from ..images.archives import readable
from ..images.user_images import UserImage
from ..models import checkpoint, clip
from ..models.clip import Vision
from ..models.device import default_device

__all__ = ["average", "average_files", "make_aesthetic"]

BATCH = 32  # images through the vision tower at once


def make_aesthetic(
    images: str | Path | Iterable[Image.Image], *, model: str | Path | Vision | None = None, clip: str | None = None
) -> Aesthetic:
    """The mean CLIP embedding of images, with unit norm; its `save` writes it to a file.

    images: a folder, a zip, a tar or one image file; or PIL images.
    model:  the model whose CLIP encodes them: a name in weights/manifest.json, a path, or a loaded vision tower. By
            default the model that the service draws with: AESTHETIC_MODEL, else Stable Diffusion 1.5, else the demo.
    clip:   a CLIP in place of a model's: its name on the hub. It must be in Hugging Face's cache; it is not downloaded.

    Raises ImageError if an image can't be read or none is given, and CheckpointError if the model or the CLIP is
    missing, damaged, or has no vision tower, and ValueError for both.
    """
    if model is not None and clip is not None:
        raise ValueError("give model or clip, not both")
    if isinstance(images, str | Path):
        return average_files(Path(images), model, clip)[0]
    name, vision = _load(model, clip)
    return average(vision, map(_user_image, images), name)[0]


def average_files(
    path: Path, model: str | Path | Vision | None, clip: str | None = None, *, skip_unreadable: bool = False
) -> tuple[Aesthetic, Tensor]:
    """The aesthetic of the images at `path`, and their raw mean [1, D] in fp32. Raises as `make_aesthetic`."""

    def images() -> Iterator[UserImage]:
        return user_images.read_images(path, user_images.LOCAL, skip_unreadable=skip_unreadable)

    next(images())  # a wrong path fails before the model loads
    name, vision = _load(model, clip)
    return average(vision, images(), name)


def average(
    vision: Vision, images: Iterable[UserImage], model: str, *, read_all_first: bool = False
) -> tuple[Aesthetic, Tensor]:
    """The aesthetic of some images, and their raw mean [1, D] in fp32.

    model:          its name, for the notes.
    read_all_first: prepare every image before the first is encoded, so that a bad one is refused before model work.

    Raises ImageError without an image, CheckpointError for features that are not finite, and what `images` raises.
    """
    sha256s: list[str] = []

    def prepared() -> Iterator[Tensor]:
        for image in tqdm(images, desc="Encoding images", unit=" images"):
            check()
            sha256s.append(image.sha256)
            yield vision.prepare(image.image)

    pixels = iter(list(prepared())) if read_all_first else prepared()
    batches = iter(lambda: list(islice(pixels, BATCH)), [])
    mean = embedding.mean(map(vision.features, batches))
    if not sha256s:
        raise ImageError("no image was given to make an aesthetic from")
    if not mean.isfinite().all():
        raise CheckpointError(f"the vision tower of {model} gives values that are not finite: are its weights damaged?")
    sha256 = embedding.digest_of(sha256s)
    notes = {
        "model": model,
        "pictures": str(len(sha256s)),
        "pictures_sha256": sha256,
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
    }
    aesthetic = Aesthetic(
        vector=embedding.unit(mean),
        name=sha256[:12],
        sha256=sha256,
        source="pictures",
        clip_space=vision.clip_space,
        notes=notes,
    )
    return aesthetic, mean


def _load(model: str | Path | Vision | None, hub_name: str | None) -> tuple[str, Vision]:
    if hub_name is not None:
        return hub_name, clip.cached_vision(hub_name, default_device())
    if isinstance(model, Vision):
        return "unknown", model
    snapshot = checkpoint.locate(str(model) if model else None)
    return snapshot.name, clip.load_vision(snapshot, default_device())


def _user_image(image: Image.Image) -> UserImage:
    """An image prepared as those in files are, with the sha256 of its pixels."""
    with readable("an image can't be used"):
        pixels = color.on_white(samples.in_8_bits(ImageOps.exif_transpose(image)))
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    return UserImage(name="", image=pixels, size=pixels.size, sha256=sha256)
