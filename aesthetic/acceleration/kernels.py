"""Triton kernels of the UNet and the decoder, and the functions that launch them.

Activations are in NHWC, [N, P, C] with P = height × width: the channels of a pixel lie side by side in memory. Kernels
read and write the activations' dtype and compute in fp32. A program takes ROWS pixels and BLOCK channels at once, both
powers of 2. All other sizes are arguments, which Triton must not specialize on if they follow from the image's: one
compilation serves every size of image.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Summed", "add", "concatenate", "geglu", "group_norm", "interleave", "layer_norm"]

Summed = tuple[Tensor, Tensor | None]  # an activation, and the sums that `group_norm` needs, if they are known
RUNS = 256  # runs of pixels in an image, at most; a program adds up one


@triton.jit(do_not_specialize=["P", "first", "tiles"])
def _sums(x, bias, residual, y, sums, P, C, width, first, tiles, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """sums[n, k, :, first + c] = u, Σ (v - u), Σ (v - u)² over the k-th run of pixels, v = x + bias + residual.

    x, residual: [N, P, C].
    u is v in the image's first pixel: sums of v itself would lose the deviation of an almost flat image in rounding.
    y[…, first + c] = v, if there is a y. y and the sums are `width` wide. bias [C] and residual may be None.
    """
    k, column, n = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.program_id(2)
    added, inside = tl.zeros([BLOCK], tl.float32), column < C
    if bias is not None:
        added += tl.load(bias + column, inside, 0.0).to(tl.float32)
    u = tl.load(x + n * P * C + column, inside, 0.0).to(tl.float32) + added
    if residual is not None:
        u += tl.load(residual + n * P * C + column, inside, 0.0).to(tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in range(tiles):
        row = (k * tiles + tile) * ROWS + tl.arange(0, ROWS)
        keep, pixel = (row < P)[:, None] & inside[None, :], n * P + row[:, None]
        v = tl.load(x + pixel * C + column[None, :], keep, 0.0).to(tl.float32) + added[None, :]
        if residual is not None:
            v += tl.load(residual + pixel * C + column[None, :], keep, 0.0).to(tl.float32)
        if y is not None:
            tl.store(y + pixel * width + first + column[None, :], v, keep)
        v = tl.where(keep, v - u[None, :], 0.0)
        total += v
        squares += v * v
    to = sums + (n * tl.num_programs(0) + k) * 3 * width + first + column
    tl.store(to, u, inside)
    tl.store(to + width, tl.sum(total, 0), inside)
    tl.store(to + 2 * width, tl.sum(squares, 0), inside)


@triton.jit(do_not_specialize=["P", "size", "stride", "runs"])
def _fold(sums, bias, weight, shift, folded, P, C, size, stride, runs, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """folded[n, :, c] = a, b with a · x + b = norm(x + bias) · weight + shift, for a group of `size` channels.

    Of the sums, each channel has its mean m and its variance; the group's variance is the mean of those, and of
    (m - mean)². bias[n · stride + c] or None.
    """
    n, channel, inside = tl.program_id(0), tl.program_id(1) * size + tl.arange(0, BLOCK), tl.arange(0, BLOCK) < size
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, runs, ROWS):
        k = first + tl.arange(0, ROWS)
        keep = (k < runs)[:, None] & inside[None, :]
        at = sums + (n * runs + k[:, None]) * 3 * C + channel[None, :]
        total += tl.load(at + C, keep, 0.0)
        squares += tl.load(at + 2 * C, keep, 0.0)
    s, q, b = tl.sum(total, 0) / P, tl.sum(squares, 0) / P, tl.zeros([BLOCK], tl.float32)
    if bias is not None:
        b = tl.load(bias + n * stride + channel, inside, 0.0).to(tl.float32)
    m = tl.load(sums + n * runs * 3 * C + channel, inside, 0.0) + s + b
    mean = tl.sum(m) / size
    d = tl.where(inside, m - mean, 0.0)
    variance = tl.sum(tl.maximum(q - s * s, 0.0) + d * d) / size
    a = tl.load(weight + channel, inside, 0.0).to(tl.float32) / tl.sqrt(variance + eps)
    to = folded + n * 2 * C + channel
    tl.store(to, a, inside)
    tl.store(to + C, tl.load(shift + channel, inside, 0.0).to(tl.float32) + (b - mean) * a, inside)


@triton.jit(do_not_specialize=["P"])
def _affine(x, folded, y, P, C, SILU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y = a · x + b, or the SiLU of it, with a, b = folded[n, :, c]."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n, keep = tl.program_id(2), (row < P)[:, None] & (column < C)[None, :]
    at = (n * P + row[:, None]) * C + column[None, :]
    a = tl.load(folded + n * 2 * C + column, column < C, 0.0)
    b = tl.load(folded + (n * 2 + 1) * C + column, column < C, 0.0)
    v = tl.load(x + at, keep, 0.0).to(tl.float32) * a[None, :] + b[None, :]
    if SILU:
        v *= tl.sigmoid(v)
    tl.store(y + at, v, keep)


@triton.jit(do_not_specialize=["M"])
def _layer_norm(x, bias, weight, shift, y, M, C, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y = norm(x + bias) · weight + shift of rows [M, C], C ≤ BLOCK."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = column < C
    keep, at = (row < M)[:, None] & inside[None, :], row[:, None] * C + column[None, :]
    v = tl.load(x + at, keep, 0.0).to(tl.float32) + tl.load(bias + column, inside, 0.0)[None, :]
    d = tl.where(keep, v - (tl.sum(v, 1) / C)[:, None], 0.0)
    d *= (1.0 / tl.sqrt(tl.sum(d * d, 1) / C + eps))[:, None]
    d *= tl.load(weight + column, inside, 0.0).to(tl.float32)[None, :]
    tl.store(y + at, d + tl.load(shift + column, inside, 0.0).to(tl.float32)[None, :], keep)


@triton.jit(do_not_specialize=["M"])
def _geglu(x, y, M, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y [M, C] = a · gelu(b), with x [M, 2 C] = a, b."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep, at = (row < M)[:, None] & (column < C)[None, :], x + row[:, None] * 2 * C + column[None, :]
    a, b = tl.load(at, keep, 0.0).to(tl.float32), tl.load(at + C, keep, 0.0).to(tl.float32)
    gelu = b * (0.5 + 0.5 * tl.erf(b * 0.7071067811865476))  # √½
    tl.store(y + row[:, None] * C + column[None, :], a * gelu, keep)


@triton.jit(do_not_specialize=["H", "W"])
def _interleave(x, bias, y, H, W, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y[n, 2 i + p, 2 j + q] = x[n, i + p, j + q, p, q] + bias, y [N, 2 H, 2 W, C], x [N, H + 1, W + 1, 2, 2, C].

    A program takes a part of a row of y.
    """
    n, i, p = tl.program_id(2) // (2 * H), tl.program_id(2) % (2 * H) // 2, tl.program_id(2) % 2
    right, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    j, q, keep = right // 2, right % 2, (right < 2 * W)[:, None] & (column < C)[None, :]
    pixel = ((n * (H + 1) + i + p) * (W + 1) + j + q) * 4 + 2 * p + q
    v = tl.load(x + pixel[:, None] * C + column[None, :], keep, 0.0).to(tl.float32)
    v += tl.load(bias + column, column < C, 0.0).to(tl.float32)[None, :]
    tl.store(y + (tl.program_id(2) * 2 * W + right[:, None]) * C + column[None, :], v, keep)


def group_norm(
    norm: Any, x: Tensor, sums: Tensor | None = None, *, bias: Tensor | None = None, silu: bool = True
) -> Tensor:
    """The group norm of x + bias, or the SiLU of it, [N, H, W, C].

    norm: an nn.GroupNorm. sums: those of x, if they are known. bias: [N or 1, C].
    """
    n, height, width, channels = x.shape
    pixels, size = height * width, channels // norm.num_groups
    sums = _add_up(x) if sums is None else sums
    folded, y = x.new_empty(n, 2, channels, dtype=torch.float32), torch.empty_like(x)
    stride = 0 if bias is None or len(bias) == 1 else bias.stride(0)
    sizes, block = (pixels, channels, size, stride, sums.shape[1]), max(128, triton.next_power_of_2(size))
    _fold[n, norm.num_groups](sums, bias, norm.weight, norm.bias, folded, *sizes, norm.eps, 32, block)
    _affine[_tiles(pixels, channels, n, 16, 128)](x, folded, y, pixels, channels, silu, 16, 128)
    return y


def add(x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Summed:
    """Return x + bias + residual, [N, H, W, C]."""
    y = torch.empty_like(x)
    return y, _add_up(x, bias, residual, y)


def concatenate(*parts: Tensor) -> Summed:
    """The channels of all parts side by side, [N, H, W, ΣC]."""
    n, height, width, _ = parts[0].shape
    y, sums, first = parts[0].new_empty(n, height, width, sum(part.shape[3] for part in parts)), None, 0
    for part in parts:
        sums = _add_up(part, None, None, y, sums, first)
        first += part.shape[3]
    return y, sums


def _add_up(
    x: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    y: Tensor | None = None,
    sums: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """The sums of x + bias + residual, [N, runs, 3, C]: see `_sums`."""
    n, height, width, channels = x.shape
    pixels, all_channels = height * width, channels if y is None else y.shape[3]
    tiles = triton.cdiv(pixels, 32 * RUNS)
    grid = _tiles(pixels, channels, n, 32 * tiles, 64)
    sums = x.new_empty(n, grid[0], 3, all_channels, dtype=torch.float32) if sums is None else sums
    sizes = (pixels, channels, all_channels, first, tiles)
    _sums[grid](x, bias, residual, y, sums, *sizes, 32, 64, num_warps=2)
    return sums


def layer_norm(norm: Any, x: Tensor, bias: Tensor) -> Tensor:
    """The layer norm, an nn.LayerNorm, of x + bias, [M, C]."""
    block, y = triton.next_power_of_2(x.shape[1]), torch.empty_like(x)
    rows = max(2, 2048 // block)
    weights, warps = (bias, norm.weight, norm.bias), max(1, rows * block // 1024)
    _layer_norm[(triton.cdiv(len(x), rows),)](x, *weights, y, *x.shape, norm.eps, rows, block, num_warps=warps)
    return y


def geglu(x: Tensor) -> Tensor:
    """The first half of x [M, 2 C] times the GELU of the second, [M, C]."""
    y = x.new_empty(len(x), x.shape[1] // 2)
    rows, channels = y.shape
    _geglu[_tiles(rows, channels, 1, 8, 256)](x, y, rows, channels, 8, 256)
    return y


def interleave(x: Tensor, bias: Tensor) -> Tensor:
    """The image [N, 2 H, 2 W, C] whose four quarters are x [N, H + 1, W + 1, 4 C]: see `_interleave`."""
    n, height, width, channels = len(x), x.shape[1] - 1, x.shape[2] - 1, x.shape[3] // 4
    y = x.new_empty(n, 2 * height, 2 * width, channels)
    _interleave[_tiles(2 * width, channels, n * 2 * height, 16, 128)](x, bias, y, height, width, channels, 16, 128)
    return y


def _tiles(pixels: int, channels: int, images: int, rows: int, block: int) -> tuple[int, int, int]:
    """The grid of programs that take `rows` pixels and `block` channels."""
    return triton.cdiv(pixels, rows), triton.cdiv(channels, block), images
