"""The VAE's decoder, written out for the GPU over diffusers' own weights."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import kernels
from .kernels import Summed
from .layers import Resnet, Upsampling, attention, conv, others

__all__ = ["Decoder"]

# Options that the code below reads from the modules themselves, or that are the encoder's or the pipeline's.
SIZES = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
    "sample_size", "down_block_types", "scaling_factor", "shift_factor", "latents_mean", "latents_std",
    "force_upcast", "use_quant_conv", "use_post_quant_conv",
)  # fmt: skip


class Decoder:
    """The decoder of diffusers' AutoencoderKL, with weights in channels_last."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.decoder = vae, vae.decoder
        mid = vae.decoder.mid_block
        self.first, self.last = (Resnet(one) for one in mid.resnets)
        self.attention = _Attention(mid.attentions[0])
        self.levels = [
            (
                [Resnet(one) for one in block.resnets],
                Upsampling(block.upsamplers[0].conv) if block.upsamplers else None,
            )
            for block in vae.decoder.up_blocks
        ]

    @staticmethod
    def unknown(vae: Any) -> dict[str, Any]:
        """Options of a VAE whose decoder is not written out here."""
        return others(vae, SIZES, up_block_types={"UpDecoderBlock2D"})

    @torch.no_grad()
    def once(self) -> None:
        """Run on a small image, for which all kernels are compiled."""
        self(self.decoder.conv_in.weight.new_zeros(1, self.vae.config.latent_channels, 8, 8))

    def __call__(self, latents: Tensor) -> Tensor:
        """Images [N, 3, f · height, f · width], nominally in -1..1, of latents [N, channels, height, width]."""
        vae, decoder = self.vae, self.decoder
        x = latents.permute(0, 2, 3, 1).contiguous()
        if vae.post_quant_conv is not None:
            x = conv(x, vae.post_quant_conv.weight, vae.post_quant_conv.bias)
        y = kernels.add(conv(x, decoder.conv_in.weight), decoder.conv_in.bias)
        y = self.last(*self.attention(*self.first(*y)))
        for resnets, upsampling in self.levels:
            for resnet in resnets:
                y = resnet(*y)
            y = y if upsampling is None else upsampling(y[0])
        image = conv(kernels.group_norm(decoder.conv_norm_out, *y), decoder.conv_out.weight, decoder.conv_out.bias)
        return image.permute(0, 3, 1, 2)


class _Attention:
    """diffusers' Attention over all pixels, with one head: y = x + out(attention(norm(x)))."""

    def __init__(self, block: Any) -> None:
        self.norm, self.out, self.heads = block.group_norm, block.to_out[0], block.heads
        self.qkv = torch.cat([block.to_q.weight, block.to_k.weight, block.to_v.weight])
        self.bias = torch.cat([block.to_q.bias, block.to_k.bias, block.to_v.bias])

    def __call__(self, x: Tensor, sums: Tensor | None) -> Summed:
        y = functional.linear(kernels.group_norm(self.norm, x, sums, silu=False), self.qkv, self.bias).flatten(1, 2)
        y = functional.linear(attention(self.heads, *y.chunk(3, -1)), self.out.weight)
        return kernels.add(y.view_as(x), self.out.bias, x)
