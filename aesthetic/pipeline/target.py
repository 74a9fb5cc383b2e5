"""The direction that a request personalizes towards: a named or uploaded aesthetic, turned by a phrase."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from ..cancellation import check
from ..embeddings import embedding, interpolation
from ..embeddings.embedding import Aesthetic
from ..embeddings.registry import Registry
from ..embeddings.resolve import resolve
from ..errors import RequestError, naming_input
from ..images import user_images
from ..models.clip import Vision
from ..models.loading import Model
from ..request import Request
from . import prompt
from .prompt import warn_of_truncation

__all__ = ["encode_images", "requested_aesthetic", "target_embedding"]

BATCH = 32  # images in the vision tower at once
UPLOAD = "the file"  # its name in messages: Cog's temporary names mean nothing to users


def requested_aesthetic(request: Request, model: Model, registry: Registry) -> Aesthetic | None:
    """The aesthetic of a request; None for the plain model.

    Raises RequestError, EmbeddingError or ImageError, naming the input, if it can't be read or does not fit `model`.
    """
    if request.is_plain:
        return None
    with naming_input(request.aesthetic_source):
        if request.aesthetic_images is not None:
            return _from_images(request.aesthetic_images, model)
        return resolve(
            registry,
            name=request.aesthetic_embedding,
            weights=request.mix,
            file=request.aesthetic_embedding_file,
            label=UPLOAD,
            clip_space=model.clip_space,
            dim=model.dim,
        )


def target_embedding(request: Request, model: Model, aesthetic: Aesthetic) -> Tensor:
    """The direction of an aesthetic, [1, D] fp32 of unit norm, turned by the request's phrase if it has one."""
    if not request.aesthetic_text:
        return aesthetic.vector
    tokens = prompt.tokenize_prompt(model.pipeline.tokenizer, request.aesthetic_text, model.device)
    warn_of_truncation("aesthetic_text", tokens)
    phrase = prompt.embed(model, tokens).cpu()
    return interpolation.turn(
        aesthetic.vector, phrase, request.aesthetic_text_angle, away=request.aesthetic_text_negative
    )


def encode_images(
    vision: Vision, path: Path, caps: user_images.Caps, *, label: str | None = None, skip_unreadable: bool = False
) -> tuple[Tensor, list[str]]:
    """The mean raw CLIP features [1, D] of the images at `path`, and the sha256 of each.

    If `caps` limit their number, all are read before the first is encoded, so that a bad one is refused before model
    work; otherwise they are streamed. `skip_unreadable` and errors are those of user_images.read_images.
    """
    sha256s: list[str] = []

    def prepared() -> Iterator[Tensor]:
        images = user_images.read_images(path, caps, label=label, skip_unreadable=skip_unreadable)
        for one in tqdm(images, desc="Encoding images", unit=" images"):
            check()
            sha256s.append(one.sha256)
            yield vision.prepare(one.image)

    pixels: Iterable[Tensor] = prepared() if caps.images is None else list(prepared())
    return embedding.mean(vision.features(batch) for batch in _batches(pixels)), sha256s


def _from_images(path: Path, model: Model) -> Aesthetic:
    if model.vision is None:
        raise RequestError(f"the model {model.snapshot.name} has no vision tower to encode images with")
    vector, sha256s = encode_images(model.vision, path, user_images.UPLOAD, label=UPLOAD)
    sha256 = embedding.digest_of(sha256s)
    return Aesthetic(
        vector=embedding.unit(vector),
        name=sha256[:12],
        sha256=sha256,
        source="pictures",
        clip_space=model.clip_space,
    )


def _batches(pixels: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    rest = iter(pixels)
    while batch := list(islice(rest, BATCH)):
        yield batch
