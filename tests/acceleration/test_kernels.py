"""Each kernel compared with torch's own functions. Without a GPU, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from aesthetic.acceleration import kernels
from aesthetic.acceleration.layers import Upsampling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
close = torch.testing.assert_close


def some(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE) + 0.5


def random_(module: nn.Module) -> nn.Module:
    for weight in module.parameters():
        weight.data = some(*weight.shape)
    return module.to(DEVICE)


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("shape", "biases", "silu"),
    [((2, 4, 6, 40), 0, True), ((3, 2, 4, 160), 3, True), ((1, 20, 13, 8), 1, False), ((2, 3, 3, 520), 1, True)],
)
def test_group_norm(shape: tuple[int, ...], biases: int, silu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "RUNS", 3)  # so that the largest image has several tiles in a run
    norm, x = random_(nn.GroupNorm(4, shape[3], eps=1e-3)), some(*shape)
    bias = some(3, 2 * shape[3])[:biases, shape[3] :] if biases else None  # a part of a wider tensor
    given = x if bias is None else x + bias[:, None, None]
    wanted = norm(nchw(given)).permute(0, 2, 3, 1)
    close(kernels.group_norm(norm, x, bias=bias, silu=silu), functional.silu(wanted) if silu else wanted)


@pytest.mark.parametrize(("mean", "deviation"), [(10.1, 0.0), (300.3, 1.0), (-100.1, 1e-3)])
def test_group_norm_of_an_almost_flat_image(mean: float, deviation: float) -> None:
    norm, x = random_(nn.GroupNorm(4, 40)), mean + deviation * some(2, 4, 6, 40)
    ours, exact = kernels.group_norm(norm, x, silu=False), norm.double()(nchw(x.double())).permute(0, 2, 3, 1)
    close(ours.double(), exact, atol=0.03, rtol=0)  # torch's own in fp32 is up to 0.7 from that


@pytest.mark.parametrize("residual", [True, False])
def test_a_sum_and_its_group_norm(residual: bool) -> None:
    norm, x, bias, other = random_(nn.GroupNorm(4, 72)), some(2, 9, 7, 72), some(72), some(2, 9, 7, 72).flip(0)
    y, sums = kernels.add(x, bias, other if residual else None)
    close(y, x + bias + other if residual else x + bias)
    assert sums is not None
    close(kernels.group_norm(norm, y, sums), kernels.group_norm(norm, y))


def test_channels_side_by_side_and_their_group_norm() -> None:
    norm, parts = random_(nn.GroupNorm(4, 104)), [some(2, 9, 7, 72), some(2, 9, 7, 32)]  # the third group has both
    y, sums = kernels.concatenate(*parts)
    assert torch.equal(y, torch.cat(parts, -1))
    assert sums is not None
    close(kernels.group_norm(norm, y, sums), kernels.group_norm(norm, y))


@pytest.mark.parametrize("width", [40, 320, 600])
def test_layer_norm(width: int) -> None:
    norm, x, bias = random_(nn.LayerNorm(width)), some(7, width), some(width)
    close(kernels.layer_norm(norm, x, bias), norm(x + bias))


def test_geglu() -> None:
    x = some(11, 2 * 300)
    close(kernels.geglu(x), x[:, :300] * functional.gelu(x[:, 300:]))


def test_upsampling_is_that_of_the_large_image() -> None:
    conv, x = random_(nn.Conv2d(24, 40, 3, padding=1)), some(2, 3, 5, 24)
    large, _ = Upsampling(conv)(x)
    close(nchw(large), conv(functional.interpolate(nchw(x), scale_factor=2.0)), atol=1e-4, rtol=1e-4)
