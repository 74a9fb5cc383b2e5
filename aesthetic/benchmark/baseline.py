"""The original research code's loop and plain diffusers, to test and to measure against.

This file imports nothing from the package, so the comparison is independent.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

__all__ = ["Original", "conditioning", "difference"]


def conditioning(model: Any, tokens: Tensor, image_embs: Tensor, *, steps: int, lr: float) -> Tensor:
    """The conditioning [1, 77, hidden] of `tokens` personalized towards `image_embs`; changes `model`, a CLIPModel.

    Transcribed with plain transformers from the FrozenCLIPEmbedder of the fork of Stable Diffusion that came with
    arXiv 2209.12330, with the model given instead of loaded from the disk for every prompt.
    """
    image_embs = image_embs / image_embs.norm(dim=-1, keepdim=True)
    text_embs = model.get_text_features(tokens).pooler_output
    text_embs = text_embs / text_embs.norm(dim=-1, keepdim=True)
    loss = -(text_embs @ image_embs.T)
    optimizer = torch.optim.Adam(model.text_model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        text_embs = model.get_text_features(tokens).pooler_output
        text_embs = text_embs / text_embs.norm(dim=-1, keepdim=True)
        loss = -(text_embs @ image_embs.T)
    z: Tensor = model.text_model(input_ids=tokens).last_hidden_state
    return z.detach()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative error."""
    return float((ours - theirs).norm() / theirs.norm())


class Original:
    """A diffusers pipeline used as documented, with the conditioning from the original's loop.

    Its weights stay in memory, where the original reads them from the disk for each prompt.
    """

    def __init__(self, pipeline: Any, encoder: Any, vae: Any) -> None:
        """pipeline: of its own, since it is set up here.

        encoder:  CLIPTextModelWithProjection in fp32; not changed.
        vae:      in the precision to decode in; the pipeline converts its own, if it has to.
        """
        self.pipeline, self.vae = pipeline, vae
        self.pipeline.set_progress_bar_config(disable=True)
        self.encoder = encoder
        self.clip = _whole(encoder)

    def personalize(self, tokens: Tensor, target: Tensor, *, steps: int, lr: float) -> Tensor:
        """The conditioning [1, 77, hidden], starting from the encoder's weights."""
        self.clip.text_model.load_state_dict(self.encoder.text_model.state_dict())
        return conditioning(self.clip, tokens, target, steps=steps, lr=lr)

    def denoise(self, embeds: Tensor, latents: Tensor, **options: Any) -> Any:
        """The pipeline's images for a conditioning and noise, guided away from the empty prompt or from another."""
        if "negative_prompt_embeds" not in options:
            with torch.no_grad():
                options["negative_prompt_embeds"] = self.pipeline.encode_prompt("", embeds.device, 1, False)[0]
        return self.pipeline(
            prompt_embeds=embeds.to(latents.dtype),
            num_images_per_prompt=len(latents),
            latents=latents,
            **options,
        ).images

    @torch.no_grad()
    def decode(self, latents: Tensor) -> tuple[Tensor, list[Image.Image]]:
        """The images [n, 3, height, width] of latents, also in 8 bits."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images = self.vae.decode(scaled, return_dict=False)[0]
        return images, self.pipeline.image_processor.postprocess(images, output_type="pil")

    def check(self, images: Tensor) -> None:
        """Run the safety checker on images, if there is one."""
        self.pipeline.run_safety_checker(images, images.device, self.pipeline.unet.dtype)

    def save(self, images: Sequence[Image.Image], folder: Path) -> None:
        """Write images as PNGs, one after the other."""
        for i, image in enumerate(images):
            image.save(folder / f"plain.{i}.png")


def _whole(encoder: Any) -> Any:
    """A CLIPModel with a copy of the text tower; its vision tower, which is not used, stays without weights."""
    config = transformers.CLIPConfig(text_config=encoder.config.to_dict(), projection_dim=encoder.config.projection_dim)
    with torch.device("meta"):
        clip = transformers.CLIPModel(config).eval()
    clip.text_model = copy.deepcopy(encoder.text_model).requires_grad_(True)
    clip.text_projection = encoder.text_projection
    return clip
