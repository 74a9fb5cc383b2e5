"""Work is counted and rates are measured."""

import torch
from torch import nn
from torch.nn import functional

from aesthetic.benchmark import roofline
from aesthetic.benchmark.roofline import Rates, Work

CPU = torch.device("cpu")


def test_the_floor_is_the_slower_of_computing_and_moving() -> None:
    rates = Rates(flops={torch.float32: 100.0, torch.float16: 1000.0}, bytes=10.0)
    assert Work(flops=200, bytes=10, dtype=torch.float32).floor(rates) == 2
    assert Work(flops=200, bytes=10, dtype=torch.float16).floor(rates) == 1
    assert Work(flops=200, bytes=10, dtype=torch.float32).times(3).floor(rates) == 6


def test_operations_are_those_of_products_convolutions_and_attention() -> None:
    a, b = torch.randn(2, 3), torch.randn(3, 5)
    assert roofline.operations(lambda: a @ b) == 2 * 2 * 3 * 5
    image, weight = torch.randn(1, 2, 8, 8), torch.randn(4, 2, 3, 3)
    assert roofline.operations(lambda: functional.conv2d(image, weight, padding=1)) == 2 * 64 * 4 * 2 * 9
    heads = torch.randn(1, 2, 7, 3)
    assert (
        roofline.operations(lambda: functional.scaled_dot_product_attention(heads, heads, heads))
        == 2 * 2 * 2 * 7 * 7 * 3
    )


def test_operations_of_a_step_are_three_times_those_of_its_forward_pass_but_for_the_input() -> None:
    layers = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 7, bias=False))
    batch = torch.randn(2, 3)
    forward = roofline.operations(lambda: layers(batch))
    assert roofline.operations(lambda: layers(batch).sum().backward()) == 3 * forward - 2 * 2 * 3 * 5


def test_bytes_are_those_of_the_weights() -> None:
    assert roofline.bytes_of(nn.Linear(3, 5), nn.Linear(3, 5, bias=False).half()) == 4 * (15 + 5) + 2 * 15


def test_the_rates_of_the_device_are_measured() -> None:
    rates = roofline.measure(CPU, {torch.float32})
    assert rates.flops.keys() == {torch.float32}
    assert min(*rates.flops.values(), rates.bytes) > 0
    took, result = roofline.seconds(CPU, lambda: "done")
    assert took >= 0
    assert result == "done"
