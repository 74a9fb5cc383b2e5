"""CLIP's text encoders as Stable Diffusion XL uses them: it is conditioned on what the last layer but one gives."""

from typing import Any

import transformers

__all__ = ["PenultimateTextModel", "PenultimateTextModelWithProjection"]


class _Penultimate:
    """Puts the hidden state before the last layer in the place of the last one. The pooled output stays."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        output = super().forward(*inputs, **options | {"output_hidden_states": True})  # type: ignore[misc]
        output.last_hidden_state = output.hidden_states[-2]
        return output


class PenultimateTextModel(_Penultimate, transformers.CLIPTextModel):  # type: ignore[misc]
    """The first encoder, CLIP ViT-L/14, also as the text model of a CLIPTextModelWithProjection."""


class PenultimateTextModelWithProjection(_Penultimate, transformers.CLIPTextModelWithProjection):  # type: ignore[misc]
    """The second encoder, OpenCLIP ViT-bigG/14."""
