"""An aesthetic of a user's own, from the files that were dropped on the page."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import RequestError
from ..images.user_images import UPLOAD, UserImage, read_images
from ..models.loading import Model
from ..pipeline.make_aesthetic import average

__all__ = ["Made", "make"]


class Made(NamedTuple):
    """Its name, its files, and which images were read and which were not, and why."""

    name: str
    file: Path
    thumbnail: Path
    report: str


def make(model: Model, paths: Sequence[Path], name: str) -> Made:
    """The aesthetic of images or of one archive, which share the limits of one upload. Raises AestheticError."""
    if model.vision is None:
        raise RequestError(f"the model {model.snapshot.name} has no vision tower to look at images with")
    name, folder = re.sub(r"[^\w -]", "", name).strip()[:60] or "mine", Path(tempfile.mkdtemp())
    read, left_out = list[str](), list[str]()

    def images() -> Iterator[UserImage]:
        with tempfile.TemporaryDirectory() as together:
            source = paths[0] if len(paths) == 1 else _linked(paths, Path(together))
            for image in read_images(source, UPLOAD, skip_unreadable=True, on_left_out=left_out.append):
                if not read:
                    image.image.resize((160, 160)).save(folder / "thumbnail.webp")
                read.append(image.name)
                yield image

    made, mean = average(model.vision, images(), model.snapshot.name)
    replace(made, vector=mean).save(folder / f"{name}.safetensors")
    report = "\n".join([f"Read {len(read)}: {', '.join(read)}", *(f"Left out: {reason}" for reason in left_out)])
    return Made(name, folder / f"{name}.safetensors", folder / "thumbnail.webp", report)


def _linked(paths: Sequence[Path], folder: Path) -> Path:
    for i, path in enumerate(paths):
        (folder / (f"{i} {path.name}" if (folder / path.name).exists() else path.name)).hardlink_to(path)
    return folder
