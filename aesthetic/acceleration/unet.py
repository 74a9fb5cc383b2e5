"""Stable Diffusion's UNet, written out for the GPU over diffusers' own weights."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import kernels
from .kernels import Summed
from .layers import Resnet, Transformer, Upsampling, conv, others

__all__ = ["Unet"]

# Options that the code below reads from the modules themselves; blocks have one of two kinds, and XL adds embeddings.
SIZES = (
    "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
    "norm_eps", "dropout", "cross_attention_dim", "attention_head_dim", "num_attention_heads",
    "transformer_layers_per_block", "use_linear_projection", "upcast_attention", "flip_sin_to_cos", "freq_shift",
    "time_embedding_dim", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
)  # fmt: skip
BLOCKS = {
    "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D"},
    "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D"},
    "addition_embed_type": {"text_time"},
}


class Unet:
    """diffusers' UNet2DConditionModel, with weights in channels_last."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.down, self.up = [_Level(one) for one in unet.down_blocks], [_Level(one) for one in unet.up_blocks]
        self.mid = _Level(unet.mid_block)
        blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        resnets = [one for block in blocks for one in block.resnets]
        # All projections of the time are one product, with the biases of the convolutions that they are added to.
        self.time = torch.cat([one.time_emb_proj.weight for one in resnets])
        self.time_bias = torch.cat([one.time_emb_proj.bias + one.conv1.bias for one in resnets])
        self.time_sizes = [one.out_channels for one in resnets]
        # So are all keys and values of the words.
        models = [one.transformer_blocks for block in blocks for one in getattr(block, "attentions", ())]
        weights = [[(one.attn2.to_k.weight, one.attn2.to_v.weight) for one in model] for model in models]
        self.keys_values = torch.cat([weight for model in weights for pair in model for weight in pair])
        self.word_sizes = [[len(weight) for pair in model for weight in pair] for model in weights]

    @staticmethod
    def unknown(unet: Any) -> dict[str, Any]:
        """Options of a UNet that are not written out here."""
        return others(unet, SIZES, **BLOCKS)

    def words(self, embeds: Tensor) -> Tensor:
        """Keys and values of the prompts [N, tokens, hidden] for all transformers, side by side: [N, tokens, …]."""
        return functional.linear(embeds, self.keys_values)

    def added(self, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
        """XL's part of the embedding of the time, [N, …]: pooled prompts [N, D] and the sizes of images [N, 6]."""
        times = self.unet.add_time_proj(time_ids.flatten()).view(len(text_embeds), -1)
        added: Tensor = self.unet.add_embedding(torch.cat([text_embeds, times.to(text_embeds.dtype)], -1))
        return added

    def prepare(self, embeds: Tensor, *added: Tensor) -> tuple[Tensor, ...]:
        """What a call takes behind the timestep: the `words`, and for Stable Diffusion XL what is `added`."""
        return (self.words(embeds), self.added(*added)) if added else (self.words(embeds),)

    def __call__(self, sample: Tensor, timestep: Tensor, words: Tensor, added: Tensor | None = None) -> Tensor:
        """The noise in latents [N, channels, height, width] at a timestep []; the rest is from `prepare`."""
        unet, factor = self.unet, 2 ** (len(self.down) - 1)
        if sample.shape[2] % factor or sample.shape[3] % factor:
            raise ValueError(f"latents of {sample.shape[3]} × {sample.shape[2]} can't be halved to {factor} times less")
        time = unet.time_embedding(unet.time_proj(timestep.expand(len(sample))).to(sample.dtype))
        if added is not None:
            time = time + added
        times = iter(
            torch.split(functional.linear(functional.silu(time), self.time, self.time_bias), self.time_sizes, -1)
        )
        prompts = self._split(words)
        x = kernels.add(conv(sample.permute(0, 2, 3, 1).contiguous(), unet.conv_in.weight), unet.conv_in.bias)
        skips = [x[0]]
        for level in self.down:
            for layer in level.layers:
                x = layer(x, times, prompts)
                skips.append(x[0])
            if level.downsampling is not None:
                x = kernels.add(conv(x[0], level.downsampling.weight, stride=2), level.downsampling.bias)
                skips.append(x[0])
        for layer in self.mid.layers:
            x = layer(x, times, prompts)
        for level in self.up:
            for layer in level.layers:
                x = layer(kernels.concatenate(x[0], skips.pop()), times, prompts)
            if level.upsampling is not None:
                x = level.upsampling(x[0])
        noise = conv(kernels.group_norm(unet.conv_norm_out, *x), unet.conv_out.weight, unet.conv_out.bias)
        return noise.permute(0, 3, 1, 2)

    @torch.no_grad()
    def once(self) -> None:
        """Run on a small image, for which all kernels are compiled."""
        weight, words = self.unet.conv_in.weight, self.keys_values.new_zeros(1, 8, self.keys_values.shape[1])
        self(weight.new_zeros(1, weight.shape[1], 8, 8), torch.zeros((), device=weight.device), self.words(words))

    def _split(self, words: Tensor) -> Iterator[list[Tensor]]:
        """For each transformer, keys and values of each block in turn."""
        parts = iter(torch.split(words, [size for sizes in self.word_sizes for size in sizes], -1))
        return ([next(parts) for _ in sizes] for sizes in self.word_sizes)


class _Level:
    """The layers of one size, and what changes the size behind them."""

    def __init__(self, block: Any) -> None:
        resnets, transformers = block.resnets, getattr(block, "attentions", ())
        self.layers = [_Layer(*pair) for pair in zip_longest(resnets, transformers)]
        downsamplers, upsamplers = (getattr(block, f"{way}samplers", None) for way in ("down", "up"))
        self.downsampling = downsamplers[0].conv if downsamplers else None
        self.upsampling = Upsampling(upsamplers[0].conv) if upsamplers else None


class _Layer:
    """A resnet, and the transformer behind it, if there is one."""

    def __init__(self, resnet: Any, transformer: Any) -> None:
        self.resnet, self.transformer = Resnet(resnet), None if transformer is None else Transformer(transformer)

    def __call__(self, x: Summed, times: Iterator[Tensor], prompts: Iterator[list[Tensor]]) -> Summed:
        x = self.resnet(*x, next(times))
        return x if self.transformer is None else self.transformer(*x, next(prompts))
