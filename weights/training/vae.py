"""The autoencoder: 512 × 512 pixels to 32 × 32 latents and back.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752, without the
adversary: absolute errors of pixels and of the differences between neighbors (for sharp edges), and a small KL penalty.
"""

import json
import math
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .library import Library
from .loop import adamw, autocast, descend, rate_at, steps
from .settings import VAE, WORK

__all__ = ["encode", "load", "train"]

CHUNK = 64


def train(library: Library, total: int = VAE.steps) -> dict[str, float]:
    """Train, and write the autoencoder to WORK; returns what was measured on subjects that were held out.

    Continues from WORK/vae if that exists.
    """
    torch.manual_seed(VAE.seed)
    made = (WORK / "vae" / "config.json").is_file()
    vae = AutoencoderKL.from_pretrained(WORK / "vae") if made else AutoencoderKL(**VAE.config)
    vae.to(library.device, memory_format=torch.channels_last)
    optimizer = adamw(vae.parameters(), VAE.rate)
    loss_of = torch.compile(_loss) if library.device.type == "cuda" else _loss
    seen = library.select(held=False)
    for step, report in steps("VAE", total):
        chosen = seen[torch.randint(len(seen), (VAE.batch,), device=library.device)]
        pixels = _pixels(library.large[chosen])
        with autocast(library.device):
            loss = loss_of(vae, pixels)
        descend(loss, optimizer, VAE.rate * rate_at(step, total, VAE.warmup))
        report(loss)
    facts = _measure(library, vae) | {"steps": total}
    vae.register_to_config(scaling_factor=1 / _spread(library, vae))
    vae.save_pretrained(WORK / "vae")
    (WORK / "vae.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def load(device: torch.device) -> Any:
    """The trained autoencoder, frozen."""
    return (
        AutoencoderKL.from_pretrained(WORK / "vae").to(device, memory_format=torch.channels_last).requires_grad_(False)
    )


@torch.no_grad()
def encode(vae: Any, pictures: Tensor) -> Tensor:
    """uint8 [N, 3, 512, 512] to the means of their latents [N, 8, 32, 32], not scaled."""
    parts = []
    for part in torch.split(pictures, CHUNK):
        with autocast(pictures.device):
            parts.append(vae.encode(_pixels(part)).latent_dist.mode().float())
    return torch.cat(parts)


def _pixels(pictures: Tensor) -> Tensor:
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _loss(vae: Any, pixels: Tensor) -> Tensor:
    latents = vae.encode(pixels).latent_dist
    off = (vae.decode(latents.sample()).sample - pixels).float()
    edges = (off.diff(dim=2)).abs().mean() + (off.diff(dim=3)).abs().mean()
    spread = (latents.mean.float() ** 2 + latents.logvar.float().exp() - 1 - latents.logvar.float()).mean() / 2
    loss: Tensor = off.abs().mean() + VAE.edges * edges + VAE.kl * spread
    return loss


@torch.no_grad()
def _measure(library: Library, vae: Any) -> dict[str, float]:
    errors = []
    for part in torch.split(library.large[library.select(held=True)], CHUNK):
        with autocast(library.device):
            drawn = vae.decode(vae.encode(_pixels(part)).latent_dist.mode()).sample
        errors.append(((drawn.float().clamp(-1, 1) - _pixels(part)) ** 2).mean((1, 2, 3)))
    noise = torch.cat(errors)
    return {"held_out_pictures": float(len(noise)), "psnr": -10 * math.log10(noise.mean().item() / 4)}


def _spread(library: Library, vae: Any) -> float:
    """The standard deviation of the latents."""
    return encode(vae, library.large[:: max(1, len(library.large) // 2000)]).std().item()
