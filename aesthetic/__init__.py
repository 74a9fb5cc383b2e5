"""Stable Diffusion with aesthetic gradients (arXiv 2209.12330).

    fantasy = aesthetic.load_aesthetic("fantasy")
    image = pipe(**aesthetic.prompt_embeds(pipe, "a castle", fantasy, steps=10)).images[0]

The names below are imported on first use, so that `import aesthetic` does not import torch. gradient.py is the idea,
service.py brings everything together.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .embeddings.embedding import Aesthetic
    from .embeddings.resolve import load_aesthetic, mix
    from .errors import AestheticError
    from .gradient import personalize
    from .pipeline.make_aesthetic import make_aesthetic
    from .pipeline.prompt_embeds import prompt_embeds
    from .request import Request
    from .service import Service

__all__ = [
    "Aesthetic",
    "AestheticError",
    "Request",
    "Service",
    "load_aesthetic",
    "make_aesthetic",
    "mix",
    "personalize",
    "prompt_embeds",
]
__version__ = "0.1.0"

_MODULES = {
    "Aesthetic": "embeddings.embedding",
    "AestheticError": "errors",
    "Request": "request",
    "Service": "service",
    "load_aesthetic": "embeddings.resolve",
    "make_aesthetic": "pipeline.make_aesthetic",
    "mix": "embeddings.resolve",
    "personalize": "gradient",
    "prompt_embeds": "pipeline.prompt_embeds",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
