"""Aesthetics mixed and turned, conditionings blended."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aesthetic.embeddings import interpolation
from aesthetic.errors import RequestError
from aesthetic.pipeline import conditioning
from tests.snapshot import ROOT


def unit(seed: int, *shape: int) -> Tensor:
    vector = torch.randn(*shape, 24, generator=torch.Generator().manual_seed(seed))
    direction: Tensor = vector / vector.norm(dim=-1, keepdim=True)
    return direction


ONE, OTHER = unit(1, 1), unit(2, 1)


def angle(one: Tensor, other: Tensor) -> float:
    return math.acos((one.double() * other.double()).sum().clamp(-1, 1).item())


def test_a_mix_is_the_unit_vector_of_the_weighted_sum() -> None:
    mixed = interpolation.mix([ONE, OTHER], [0.7, -0.2])
    expected = 0.7 * ONE - 0.2 * OTHER
    torch.testing.assert_close(mixed, expected / expected.norm())
    assert mixed.dtype == torch.float32


@pytest.mark.parametrize("weight", [5e-324, 1e-161, 0.001, 1.0, 100.0])
def test_a_mix_of_one_is_that_one(weight: float) -> None:
    torch.testing.assert_close(interpolation.mix([ONE], [weight]), ONE, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(interpolation.mix([ONE], [-weight]), -ONE, rtol=1e-6, atol=1e-7)


def test_a_mix_that_cancels_out_is_refused() -> None:
    with pytest.raises(RequestError, match="the aesthetics of the mix cancel one another out"):
        interpolation.mix([ONE, ONE], [0.3, -0.3])


@given(st.floats(0, 1), st.booleans())
def test_a_turn_goes_its_share_of_the_way_and_stays_on_the_sphere(share: float, away: bool) -> None:
    end = -OTHER if away else OTHER
    turned = interpolation.turn(ONE, OTHER, share, away=away)
    assert turned.norm().item() == pytest.approx(1, abs=1e-6)
    assert angle(ONE, turned) == pytest.approx(share * angle(ONE, end), abs=1e-3)
    assert angle(turned, end) == pytest.approx((1 - share) * angle(ONE, end), abs=1e-3)


@pytest.mark.parametrize(("length", "share"), [(10, 0.6), (25, 0.8)])
def test_a_tenth_of_the_web_ui_s_way_is_what_the_differences_say(length: int, share: float) -> None:
    image, text, between = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.2, 0.96**0.5]]), math.acos(0.2)
    weights = math.sin(0.9 * between), math.sin(0.1 * between)
    theirs = weights[0] * image + weights[1] * length * text  # its slerp, which keeps lengths, but for a factor
    assert angle(image, theirs / theirs.norm()) / between == pytest.approx(share, abs=0.05)
    told = (ROOT / "aesthetic" / "DIFFERENCES.md").read_text(encoding="utf-8")
    assert re.search(rf"0\.1 there is .*{share} (here )?for (a text embedding|one) of length {length}\b", told)


def test_an_angle_of_0_returns_the_target() -> None:
    assert interpolation.turn(ONE, OTHER, 0) is ONE


@pytest.mark.parametrize("seed", range(10))
def test_a_turn_to_the_opposite_is_refused(seed: int) -> None:
    direction = unit(seed, 1)
    with pytest.raises(RequestError, match="choose another phrase, or set aesthetic_text_negative to false"):
        interpolation.turn(direction, direction, 0.5, away=True)
    assert interpolation.turn(direction, direction, 0.5) is direction


def test_tokens_that_slerp_can_t_blend_are_blended_linearly() -> None:
    plain = unit(3, 1, 3)
    personalized = torch.stack([plain[:, 0], -2 * plain[:, 1], 0 * plain[:, 2]], dim=1)
    blended = conditioning.blend(plain, personalized, 0.25, spherical=True)
    torch.testing.assert_close(blended, torch.lerp(plain, personalized, 0.25))
    assert torch.equal(blended[:, 0], plain[:, 0])


@pytest.mark.parametrize("spherical", [False, True])
def test_the_ends_of_a_blend_are_exact(spherical: bool) -> None:
    plain, personalized = 3 * unit(3, 1, 7), 5 * unit(4, 1, 7)
    assert torch.equal(conditioning.blend(plain, personalized, 0, spherical=spherical), plain)
    assert torch.equal(conditioning.blend(plain, personalized, 1, spherical=spherical), personalized)
    same = conditioning.blend(plain, plain, 0.5, spherical=spherical)
    torch.testing.assert_close(same, plain)


def test_a_straight_blend_is_shorter_than_one_on_the_sphere() -> None:
    plain, personalized = 3 * unit(3, 1, 7), 5 * unit(4, 1, 7)
    straight = conditioning.blend(plain, personalized, 0.5)
    torch.testing.assert_close(straight, (plain + personalized) / 2)
    around = conditioning.blend(plain, personalized, 0.5, spherical=True)
    torch.testing.assert_close(around.norm(dim=-1), torch.full((1, 7), 4.0))
    assert (straight.norm(dim=-1) < around.norm(dim=-1)).all()
    cosines = [torch.cosine_similarity(around, end, dim=-1) for end in (plain, personalized)]
    torch.testing.assert_close(*cosines)
