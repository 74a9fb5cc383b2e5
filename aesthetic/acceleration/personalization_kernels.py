"""Triton kernels of the personalization: CLIP's text encoder forward and backward, and Adam, all in fp32.

Sizes: T tokens, `length` in each chunk of the prompt, which is a multiple of 16; H hidden; F of the mlp; D of a head.
Activations and their gradients, [T, width], are columns of one tensor with rows `stride` apart; everything else is
contiguous.

A product is computed as three of TF32 ("tf32x3"), which is as exact as fp32. Its sum may be cut into parts
[COUNT, T, width], computed at the same time, which the next kernel adds up in a fixed order: the same bits each time.
"""

import triton
import triton.language as tl
from triton.language import constexpr

__all__ = ["add_norm", "attend", "attend_back", "norm_back", "product", "update_matrices", "update_vectors"]


@triton.jit
def _sum(parts, at, inside, size, COUNT: constexpr):
    """The sum of parts that are `size` apart."""
    total = tl.load(parts + at, inside, 0.0)
    for part in tl.static_range(1, COUNT):
        total += tl.load(parts + part * size + at, inside, 0.0)
    return total


@triton.jit
def _normalize(h, inside, width, eps):
    """A row without its mean, divided by its deviation r; and 1 / r."""
    centered = tl.where(inside, h - tl.sum(h, 0) / width, 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(centered * centered, 0) / width + eps)
    return centered * scale, scale


@triton.jit
def add_norm(before, parts, bias, norm, h, x, tokens, width, stride, eps, COUNT: constexpr, BLOCK: constexpr):
    """Sum h = before + Σ parts + bias, and its layer norm x = w n(h) + b; a program for each token.

    before, h, x: [T, H]; bias: [H]; norm: [2, H], w and b. With COUNT = 0, h = before.
    """
    token, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside, at = column < width, token * stride + column
    total = tl.load(before + at, inside, 0.0)
    if COUNT > 0:
        total += tl.load(bias + column, inside, 0.0)
        total += _sum(parts + token * width, column, inside, tokens * width, COUNT)
        tl.store(h + at, total, inside)
    n, _ = _normalize(total, inside, width, eps)
    tl.store(x + at, n * tl.load(norm + column, inside) + tl.load(norm + width + column, inside), inside)


@triton.jit
def norm_back(parts, h, norm, after, dh, shares, tokens, width, stride, eps, COUNT: constexpr, BLOCK: constexpr):
    """Backward of add_norm: dh = after + (g - mean(g) - n mean(g n)) / r with g = w dx, dx = Σ parts.

    after: [T, H], the gradient that reaches h around the layer, or None; shares: [T, 2 H], of the gradient of `norm`.
    """
    token, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside, at = column < width, token * stride + column
    n, scale = _normalize(tl.load(h + at, inside, 0.0), inside, width, eps)
    dx = _sum(parts + token * width, column, inside, tokens * width, COUNT)
    tl.store(shares + at, dx * n, inside)
    tl.store(shares + width + at, dx, inside)
    g = dx * tl.load(norm + column, inside, 0.0)
    total = scale * (g - tl.sum(g, 0) / width - n * (tl.sum(g * n, 0) / width))
    if after is not None:
        total += tl.load(after + at, inside, 0.0)
    tl.store(dh + at, total, inside)


@triton.jit
def _gate(x, QUICK: constexpr):
    """Of GELU, gelu(x) = x g(x): g and its derivative. g = σ(1.702 x) if QUICK, else the normal distribution Φ(x)."""
    if QUICK:
        gate = 1.0 / (1.0 + tl.exp(-1.702 * x))
        return gate, 1.702 * gate * (1.0 - gate)
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476), 0.3989422804014327 * tl.exp(-0.5 * x * x)  # √½, 1 / √(2 π)


@triton.jit
def product(a, weight, out, bias, pre, tokens, width, depth, stride, out_stride, by_width, by_depth,
            QUICK: constexpr, BN: constexpr, BK: constexpr):  # fmt: skip
    """Product out[t, n] = Σ_k a[t, k] weight[n, k] + bias[n]; a program for BN n, a part of the sum, and 32 tokens.

    a: [T, depth]; out: [T, width], or its parts; by_width, by_depth: the strides of n and k in the weight.
    With pre [T, width], pre = that, out = gelu(that); without a bias, out = that · gelu'(pre).
    """
    terms, token = depth // tl.num_programs(1), (tl.program_id(2) * 32 + tl.arange(0, 32))[:, None]
    k, n = tl.program_id(1) * terms + tl.arange(0, BK), (tl.program_id(0) * BN + tl.arange(0, BN))[None, :]
    left, right = a + token * stride + k[None, :], weight + n * by_width + k[:, None] * by_depth
    inside, total = token < tokens, tl.zeros([32, BN], tl.float32)
    for _ in range(0, terms, BK):
        total = tl.dot(tl.load(left, inside, 0.0), tl.load(right), total, input_precision="tf32x3")
        left += BK
        right += BK * by_depth
    if bias is not None:
        total += tl.load(bias + n)
        if pre is not None:
            tl.store(pre + token * stride + n, total, inside)
            total *= _gate(total, QUICK)[0]
    elif pre is not None:
        x = tl.load(pre + token * stride + n, inside, 0.0)
        gate, slope = _gate(x, QUICK)
        total *= gate + x * slope
    tl.store(out + (tl.program_id(1) * tokens + token) * out_stride + n, total, inside)


@triton.jit
def _tokens(length, BT: constexpr):
    """For one of the programs that share a chunk: its head, its 16 tokens, all of the chunk's, and the chunk's end."""
    first = tl.program_id(1) * 16
    start = first // length * length
    return tl.program_id(0), first + tl.arange(0, 16), start + tl.arange(0, BT), start + length


@triton.jit
def _block(a, token, column, end, stride, size=0, COUNT: constexpr = 1):
    """Tokens and columns of a value [T, stride], or of the sum of COUNT such parts, which are `size` apart."""
    return _sum(a, token[:, None] * stride + column[None, :], (token < end)[:, None], size, COUNT)


@triton.jit
def attend(qkv, p, out, tokens, length, hidden, stride, scale, D: constexpr, BT: constexpr):
    """Causal attention in each chunk: out = p v, p = softmax(scale q kᵀ); a program for a head and 16 of its queries.

    qkv: [T, 3 H], queries, keys and values; p: [heads, T, length]; out: [T, H].
    """
    head, query, key, end = _tokens(length, BT)
    column = head * D + tl.arange(0, D)
    q, k = _block(qkv, query, column, end, stride), _block(qkv + hidden, key, column, end, stride)
    z = scale * tl.dot(q, tl.trans(k), input_precision="tf32x3")
    z = tl.where(key[None, :] <= query[:, None], z, float("-inf"))
    e = tl.exp(z - tl.max(z, 1)[:, None])
    softmax = e / tl.sum(e, 1)[:, None]
    at = (head * tokens + query[:, None]) * length + (key - end + length)[None, :]
    tl.store(p + at, softmax, (key < end)[None, :])
    v = _block(qkv + 2 * hidden, key, column, end, stride)
    tl.store(out + query[:, None] * stride + column[None, :], tl.dot(softmax, v, input_precision="tf32x3"))


@triton.jit
def _softmax_back(
    parts, COUNT: constexpr, qkv, p, out, head, query, key, end, column, tokens, length, hidden, stride, scale
):
    """For a block [queries, keys]: p, and dz = scale p ∘ (dp - Σ dp ∘ p) with dp = do vᵀ; and do."""
    at, inside = (head * tokens + query[:, None]) * length + (key - end + length)[None, :], (query < end)[:, None]
    softmax = tl.load(p + at, inside & (key < end)[None, :], 0.0)
    do = _block(parts, query, column, end, hidden, tokens * hidden, COUNT)
    dp = tl.dot(do, tl.trans(_block(qkv + 2 * hidden, key, column, end, stride)), input_precision="tf32x3")
    sums = tl.sum(do * _block(out, query, column, end, stride), 1)[:, None]  # over all keys
    return softmax, scale * softmax * (dp - sums), do


@triton.jit
def attend_back(
    parts, COUNT: constexpr, qkv, p, out, d_qkv, tokens, length, hidden, stride, scale, D: constexpr, BT: constexpr
):
    """Backward of attend, z being scale q kᵀ: dq = dz k, dk = dzᵀ q, dv = pᵀ do, with do = Σ parts [COUNT, T, H].

    A program for a head and 16 of its queries, or, at 1 on the third axis, 16 of its keys and values.
    """
    head, some, every, end = _tokens(length, BT)
    column = head * D + tl.arange(0, D)
    to = d_qkv + some[:, None] * stride + column[None, :]
    if tl.program_id(2) == 0:  # Triton wants other names in the two branches where shapes differ
        _, dz, _ = _softmax_back(
            parts, COUNT, qkv, p, out, head, some, every, end, column, tokens, length, hidden, stride, scale
        )
        k = _block(qkv + hidden, every, column, end, stride)
        tl.store(to, tl.dot(dz, k, input_precision="tf32x3"))
    else:
        s, ds, do = _softmax_back(
            parts, COUNT, qkv, p, out, head, every, some, end, column, tokens, length, hidden, stride, scale
        )
        q = _block(qkv, every, column, end, stride)
        tl.store(to + hidden, tl.dot(tl.trans(ds), q, input_precision="tf32x3"))
        tl.store(to + 2 * hidden, tl.dot(tl.trans(s), do, input_precision="tf32x3"))


@triton.jit
def _adam(gradient, weights, mean, square, rates, at, inside):
    """Adam: m += (1 - β₁)(g - m); v += (1 - β₂)(g² - v); w -= lr m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + ε).

    rates: [3]: lr / (1 - β₁ᵗ), 1 / √(1 - β₂ᵗ), and 0 in the first step, which reads no moments.
    """
    m, v = tl.zeros_like(gradient), tl.zeros_like(gradient)
    if tl.load(rates + 2) > 0:
        m, v = tl.load(mean + at, inside), tl.load(square + at, inside)
    m += (1.0 - 0.9) * (gradient - m)
    v = 0.999 * v + (1.0 - 0.999) * gradient * gradient
    change = tl.load(rates) * m / (tl.sqrt(v) * tl.load(rates + 1) + 1e-8)
    tl.store(weights + at, tl.load(weights + at, inside) - change, inside)
    tl.store(mean + at, m, inside)
    tl.store(square + at, v, inside)


@triton.jit
def update_matrices(left, right, weights, mean, square, rates, start, hidden, mlp, stride, T: constexpr, BT: constexpr):
    """Adam for 32 columns and 64 rows, from `start` on, of a layer's matrices [2 F + 4 H, H] with gradient leftᵀ right.

    left: [T, 2 F + 4 H], a column for each row of the matrices; right: [T, 4 H], H columns for each of the matrices.
    """
    first = start + tl.program_id(1) * 64
    matrix = (first >= mlp).to(tl.int32) + (first >= 2 * mlp) + (first >= 2 * mlp + hidden)
    row, column = first + tl.arange(0, 64)[None, :], tl.program_id(0) * 32 + tl.arange(0, 32)[None, :]
    gradient = tl.zeros([64, 32], tl.float32)
    for token in range(0, T, BT):
        at = (token + tl.arange(0, BT))[:, None] * stride
        x, y = tl.load(left + at + row), tl.load(right + at + matrix * hidden + column)
        gradient = tl.dot(tl.trans(x), y, gradient, input_precision="tf32x3")
    _adam(gradient, weights, mean, square, rates, tl.trans(row) * hidden + column, True)


@triton.jit
def update_vectors(gradients, weights, mean, square, rates, size, BLOCK: constexpr):
    """Adam for BLOCK of `size` elements with these gradients."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _adam(tl.load(gradients + at, at < size), weights, mean, square, rates, at, at < size)
