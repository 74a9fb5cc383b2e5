"""The direction that a request personalizes towards: a named or uploaded aesthetic, turned by a phrase."""

from torch import Tensor

from ..embeddings import interpolation
from ..embeddings.embedding import Aesthetic
from ..embeddings.registry import Registry
from ..embeddings.resolve import resolve
from ..errors import RequestError, naming_input
from ..images import user_images
from ..models.clip import Vision
from ..models.loading import Model
from ..request import Request
from . import prompt
from .make_aesthetic import average
from .prompt import warn_of_truncation

__all__ = ["requested_aesthetic", "require_vision", "target_embedding"]

UPLOAD = "the file"  # in messages: Cog's temporary names mean nothing to users


def requested_aesthetic(request: Request, model: Model, registry: Registry) -> Aesthetic | None:
    """The aesthetic of a request; None for the plain model.

    Raises RequestError, EmbeddingError or ImageError, naming the input, if it can't be read or does not fit `model`.
    """
    if request.is_plain:
        return None
    with naming_input(request.aesthetic_source):
        if request.aesthetic_images is None:
            return resolve(
                registry,
                name=request.aesthetic_embedding,
                weights=request.mix,
                file=request.aesthetic_embedding_file,
                label=UPLOAD,
                clip_space=model.clip_space,
                dim=model.dim,
            )
        vision = require_vision(model)
        images = user_images.read_images(request.aesthetic_images, user_images.UPLOAD, label=UPLOAD)
        return average(vision, images, model.snapshot.name, read_all_first=True)[0]


def require_vision(model: Model) -> Vision:
    """The vision tower of a model. Raises RequestError if it has none."""
    if model.vision is None:
        raise RequestError(f"the model {model.snapshot.name} has no vision tower to encode images with")
    return model.vision


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
