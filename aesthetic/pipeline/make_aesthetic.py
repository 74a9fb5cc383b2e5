"""An aesthetic from images, for Python users."""

import datetime as dt
import hashlib
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from ..embeddings import embedding
from ..embeddings.embedding import Aesthetic
from ..errors import ImageError
from ..images import color, samples, user_images
from ..models import checkpoint
from ..models.clip import Vision, load_vision
from ..models.device import default_device
from .target import encode_images

__all__ = ["make_aesthetic"]


def make_aesthetic(
    images: str | Path | Iterable[Image.Image], *, model: str | Path | Vision | None = None
) -> Aesthetic:
    """The mean CLIP embedding of images, with unit norm; its `save` writes it to a file.

    images: a folder, a zip, a tar or one image file; or PIL images.
    model:  the model whose CLIP encodes them: a name in weights/manifest.json, a path, or a loaded vision tower. By
            default the model that the service draws with: AESTHETIC_MODEL, else Stable Diffusion 1.5, else the demo.

    Raises ImageError if an image can't be read or none is given, and CheckpointError if the model is missing or has no
    vision tower.
    """
    if isinstance(images, str | Path):
        next(user_images.read_images(Path(images), user_images.LOCAL))  # a wrong path fails before the model loads
    name, vision = ("unknown", model) if isinstance(model, Vision) else _load(model)
    if isinstance(images, str | Path):
        vector, sha256s = encode_images(vision, Path(images), user_images.LOCAL)
    else:
        vector, sha256s = _encode_images(vision, images)
    sha256 = embedding.digest_of(sha256s)
    return Aesthetic(
        vector=embedding.unit(vector),
        name=sha256[:12],
        sha256=sha256,
        source="pictures",
        clip_space=vision.clip_space,
        notes={
            "model": name,
            "pictures": str(len(sha256s)),
            "pictures_sha256": sha256,
            "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        },
    )


def _load(model: str | Path | None) -> tuple[str, Vision]:
    snapshot = checkpoint.locate(str(model) if model else None)
    return snapshot.name, load_vision(snapshot, default_device())


def _encode_images(vision: Vision, images: Iterable[Image.Image]) -> tuple[Tensor, list[str]]:
    """The mean raw CLIP features [1, D] of PIL images, and the sha256 of the pixels of each."""
    features, sha256s = [], []
    for image in images:
        pixels = color.on_white(samples.in_8_bits(ImageOps.exif_transpose(image)))  # as images from files
        features.append(vision.features([vision.prepare(pixels)]))
        sha256s.append(hashlib.sha256(pixels.tobytes()).hexdigest())
    if not features:
        raise ImageError("no image was given to make an aesthetic from")
    return embedding.mean(features), sha256s
