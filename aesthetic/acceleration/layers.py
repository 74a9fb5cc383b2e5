"""The layers that UNet and decoder have in common, over diffusers' own modules. Activations are NHWC.

Biases are added where the next kernel reads its input anyway: a convolution's in the group norm behind it, those of a
transformer in its layer norms, whose residual is what the products add to in place.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import kernels
from .kernels import Summed

__all__ = ["Resnet", "Transformer", "Upsampling", "attention", "conv", "others"]


def others(part: Any, free: Sequence[str], **blocks: set[str]) -> dict[str, Any]:
    """The options of a model of diffusers, with their values, that are neither `free` nor at their defaults.

    blocks: options that name or list kinds, such as those of blocks, and the kinds that they may name.
    """
    defaults = {name: one.default for name, one in inspect.signature(type(part)).parameters.items()}
    changed = {name: part.config[name] for name in defaults if part.config[name] != defaults[name]}
    allowed = {name for name in changed if name in free or (name in blocks and _kinds(changed[name]) <= blocks[name])}
    return {name: value for name, value in changed.items() if name not in allowed}


def _kinds(value: Any) -> set[Any]:
    return {value} if isinstance(value, str) else set(value)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """The convolution of x [N, H, W, C], padded by half the kernel's size."""
    y = functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, weight.shape[-1] // 2)
    return y.permute(0, 2, 3, 1).contiguous()


def attention(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries [N, P, C] to keys and values [N, Q, C], [N, P, C]."""
    q, k, v = (one.view(*one.shape[:2], heads, -1).transpose(1, 2) for one in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Resnet:
    """diffusers' ResnetBlock2D: y = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + bias)))."""

    def __init__(self, block: Any) -> None:
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.conv1, self.conv2 = block.conv1.weight, block.conv2.weight
        self.bias1, self.bias, self.shortcut = block.conv1.bias[None], block.conv2.bias, None
        if block.conv_shortcut is not None:
            self.shortcut, self.bias = block.conv_shortcut.weight.flatten(1), self.bias + block.conv_shortcut.bias

    def __call__(self, x: Tensor, sums: Tensor | None, bias: Tensor | None = None) -> Summed:
        """Bias [N, C]: the first convolution's and the embedding of the time, if there is one."""
        y = conv(kernels.group_norm(self.norm1, x, sums), self.conv1)
        y = conv(kernels.group_norm(self.norm2, y, bias=self.bias1 if bias is None else bias), self.conv2)
        return kernels.add(y, self.bias, x if self.shortcut is None else functional.linear(x, self.shortcut))


class Upsampling:
    """diffusers' Upsample2D: each pixel becomes 2 × 2, and then a convolution of 3 × 3.

    Two of the three rows that the kernel covers, and two of the columns, are copies of one. So each of the four pixels
    that one becomes is a convolution of 2 × 2 of the small image: 4/9 of the work, and no large copy.
    """

    def __init__(self, conv: Any) -> None:
        self.bias = conv.bias
        twice = conv.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32)
        four = torch.einsum("pau,oiuv,qbv->pqoiab", twice, conv.weight.float(), twice).flatten(0, 2)
        self.weight = four.to(conv.weight.dtype).contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor) -> Summed:
        """Twice the size, [N, 2 H, 2 W, C]."""
        return kernels.interleave(conv(x, self.weight), self.bias), None


class Transformer:
    """diffusers' Transformer2DModel."""

    def __init__(self, model: Any) -> None:
        self.norm = model.norm
        self.proj_in, self.proj_out = (one.weight.flatten(1) for one in (model.proj_in, model.proj_out))
        bias, self.blocks = model.proj_in.bias.float(), []
        for one in model.transformer_blocks:
            self.blocks.append(Block(one, bias))
            bias = self.blocks[-1].biases[-1]
        self.bias = self.proj_out.float() @ bias + model.proj_out.bias

    def __call__(self, x: Tensor, sums: Tensor | None, words: list[Tensor]) -> Summed:
        """words: keys and values [N, tokens, C] of the prompt for each block in turn."""
        n, height, width, _ = x.shape
        y = functional.linear(kernels.group_norm(self.norm, x, sums, silu=False), self.proj_in).flatten(0, 2)
        for block, k, v in zip(self.blocks, words[::2], words[1::2], strict=True):
            block(y, k, v)
        return kernels.add(functional.linear(y, self.proj_out).view(n, height, width, -1), self.bias, x)


class Block:
    """diffusers' BasicTransformerBlock: attention to the image, attention to the words, and a GEGLU, each added.

    biases: of x at each layer norm and at the end: the sum of those that no product has added.
    """

    def __init__(self, block: Any, bias: Tensor) -> None:
        self.norms, self.heads = (block.norm1, block.norm2, block.norm3), block.attn1.heads
        itself, words, (first, _, second) = block.attn1, block.attn2, block.ff.net
        self.qkv = torch.cat([itself.to_q.weight, itself.to_k.weight, itself.to_v.weight])
        self.q, self.first, self.first_bias = words.to_q.weight, first.proj.weight, first.proj.bias
        outs = (itself.to_out[0], words.to_out[0], second)
        self.outs = [out.weight.T for out in outs]
        self.biases = [bias]
        for out in outs:
            self.biases.append(self.biases[-1] + out.bias)

    def __call__(self, x: Tensor, k: Tensor, v: Tensor) -> None:
        """Updates x [N × P, C] in place."""
        n = len(k)
        y = functional.linear(kernels.layer_norm(self.norms[0], x, self.biases[0]), self.qkv)
        y = attention(self.heads, *y.view(n, -1, y.shape[1]).chunk(3, -1))
        x.addmm_(y.flatten(0, 1), self.outs[0])
        y = functional.linear(kernels.layer_norm(self.norms[1], x, self.biases[1]), self.q)
        x.addmm_(attention(self.heads, y.view(n, -1, y.shape[1]), k, v).flatten(0, 1), self.outs[1])
        y = functional.linear(kernels.layer_norm(self.norms[2], x, self.biases[2]), self.first, self.first_bias)
        x.addmm_(kernels.geglu(y), self.outs[2])
