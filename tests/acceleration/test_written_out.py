"""UNet and decoder as they are written out, compared with diffusers' own. Without a GPU, in Triton's interpreter."""

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from aesthetic.acceleration import modules
from aesthetic.acceleration.decoder import Decoder
from aesthetic.acceleration.unet import Unet
from tests.original import difference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
UNETS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": {},
    "Stable Diffusion 2": {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    "the demo": {"in_channels": 8, "out_channels": 8, "layers_per_block": (2, 1), "block_out_channels": (64, 96)},
    "Stable Diffusion XL": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 2),
        "transformer_layers_per_block": (1, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
}
ADDED = {"text_embeds": torch.randn(2, 16), "time_ids": torch.tensor([[64.0, 96, 0, 0, 64, 96], [128, 1, 2, 3, 4, 5]])}


def random_(part: Any) -> Any:
    """The part with biases and norms that are not 0 and 1."""
    dice = torch.Generator().manual_seed(0)
    for weight in part.parameters():
        if weight.dim() == 1:
            weight.data += 0.1 * torch.randn(weight.shape, generator=dice)
    return part.to(DEVICE).requires_grad_(False).eval()


def nhwc(part: Any) -> Any:
    return copy.deepcopy(part).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", UNETS)
def test_a_unet_equals_diffusers(kind: str) -> None:
    unet = random_(UNet2DConditionModel(**TINY | UNETS[kind]))
    sample, embeds = torch.randn(2, unet.config.in_channels, 4, 6, device=DEVICE), torch.randn(2, 5, 24, device=DEVICE)
    timestep, ours = torch.tensor(500.0, device=DEVICE), Unet(nhwc(unet))
    assert not Unet.unknown(unet)
    added = {name: one.to(DEVICE) for name, one in ADDED.items() if "XL" in kind}
    noise = ours(sample, timestep, *ours.prepare(embeds, *added.values()))
    theirs = unet(sample, timestep, embeds, added_cond_kwargs=added, return_dict=False)[0]
    assert difference(noise, theirs) < 1e-5


def test_latents_that_do_not_halve_evenly_are_refused() -> None:
    unet = random_(UNet2DConditionModel(**TINY))
    with pytest.raises(ValueError, match="latents of 5 × 4 can't be halved"):
        Unet(nhwc(unet))(torch.zeros(1, 4, 4, 5), torch.zeros(()), torch.zeros(1, 1, 1))


@pytest.mark.parametrize("options", [{}, {"use_post_quant_conv": False, "latent_channels": 8, "layers_per_block": 2}])
def test_a_decoder_equals_diffusers(options: dict[str, Any]) -> None:
    up, down = ("UpDecoderBlock2D",) * 2, ("DownEncoderBlock2D",) * 2
    tiny = {"up_block_types": up, "down_block_types": down, "block_out_channels": (16, 32), "norm_num_groups": 4}
    vae = random_(AutoencoderKL(**tiny | options))
    latents = torch.randn(2, vae.config.latent_channels, 4, 6, device=DEVICE)
    assert not Decoder.unknown(vae)
    assert difference(Decoder(nhwc(vae))(latents), vae.decode(latents, return_dict=False)[0]) < 1e-5


@pytest.mark.parametrize(
    ("options", "unknown"),
    [
        ({"resnet_time_scale_shift": "scale_shift"}, "{'resnet_time_scale_shift': 'scale_shift'}"),
        (
            {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")},
            "{'down_block_types': ('AttnDownBlock2D', 'DownBlock2D')}",
        ),
        ({"addition_embed_type": "text", "cross_attention_dim": 64}, "{'addition_embed_type': 'text'}"),
        ({"class_embed_type": "timestep", "act_fn": "gelu"}, "{'act_fn': 'gelu', 'class_embed_type': 'timestep'}"),
    ],
)
def test_another_kind_of_unet_is_named(options: dict[str, Any], unknown: str, caplog: pytest.LogCaptureFixture) -> None:
    unet = UNet2DConditionModel(**TINY | options)
    assert modules._written_out(unet) is None
    assert f"UNet2DConditionModel is replayed as diffusers' own, since {unknown} is not written out" in caplog.text


def test_another_kind_of_decoder_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert modules._written_out(AutoencoderKL(block_out_channels=(32,), mid_block_add_attention=False)) is None
    assert "AutoencoderKL is replayed as diffusers' own, since {'mid_block_add_attention': False}" in caplog.text
