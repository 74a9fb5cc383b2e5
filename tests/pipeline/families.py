"""Tiny random pipelines of other families than Stable Diffusion 1.x, made with diffusers' own classes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers

from tests.snapshot import MODEL

VAE = {"block_out_channels": (8, 8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}
VAE |= {f"{way}_block_types": (f"{name}Block2D",) * 4 for way, name in (("down", "DownEncoder"), ("up", "UpDecoder"))}
FIRST = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 3}
SECOND = {"hidden_size": 40, "intermediate_size": 41, "num_attention_heads": 4, "num_hidden_layers": 3}


def sdxl(home: Path, pooled: int = 48) -> Any:
    """Stable Diffusion XL: CLIP ViT-L without a projection, OpenCLIP bigG with one, and a UNet with sizes as inputs."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        cross_attention_dim=72,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + 6 * 8,
        norm_num_groups=8,
    )
    tokenizer = _tokenizer(home)
    return diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(**VAE, latent_channels=4, force_upcast=False),
        text_encoder=transformers.CLIPTextModel(_config(tokenizer, FIRST, 24)).eval(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_config(tokenizer, SECOND, pooled)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=_tokenizer(home, pad_token="!"),
        unet=unet.eval(),
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def sd3(home: Path) -> Any:
    """Stable Diffusion 3: two CLIPs with projections, and T5."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=80,
        pooled_projection_dim=24 + 48,
        out_channels=4,
    )
    tokenizer = _tokenizer(home)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKL(**VAE, latent_channels=4, shift_factor=0.0),
        text_encoder=transformers.CLIPTextModelWithProjection(_config(tokenizer, FIRST, 24)).eval(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_config(tokenizer, SECOND, 48)).eval(),
        text_encoder_3=_t5(80),
        tokenizer=tokenizer,
        tokenizer_2=copy.copy(tokenizer),
        tokenizer_3=_words(),
    )


def flux(home: Path) -> Any:
    """FLUX: the pooled output of CLIP ViT-L, and T5."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=80,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    tokenizer = _tokenizer(home)
    return diffusers.FluxPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKL(**VAE, latent_channels=4, shift_factor=0.0),
        text_encoder=transformers.CLIPTextModel(_config(tokenizer, FIRST, 24)).eval(),
        text_encoder_2=_t5(80),
        tokenizer=tokenizer,
        tokenizer_2=_words(),
    )


FAMILIES: dict[str, Callable[[Path], Any]] = {"SDXL": sdxl, "SD3": sd3, "FLUX": flux}


def _tokenizer(home: Path, **changes: Any) -> Any:
    return transformers.CLIPTokenizer.from_pretrained(home / "weights" / MODEL / "tokenizer", **changes)


def _config(tokenizer: Any, sizes: dict[str, int], dim: int) -> transformers.CLIPTextConfig:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    return transformers.CLIPTextConfig(**sizes, **ids, vocab_size=len(tokenizer), projection_dim=dim)


def _t5(width: int) -> Any:
    config = transformers.T5Config(vocab_size=16, d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config).eval()


def _words() -> Any:
    """A tokenizer in T5's place: the few words of the tests."""
    names = ["<pad>", "</s>", "<unk>", "the", "cat"]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=77
    )
