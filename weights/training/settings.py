"""Every number of the three trainings, and the shapes of the models.

Sizes are in pixels, learning rates those of AdamW. The shapes are chosen so that all weights together stay
under 48 MB in fp16, and that fifty denoising steps of 512 × 512 take a few seconds on two CPU cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CLIP",
    "DEMO",
    "JUDGE",
    "LIBRARY",
    "PROMPTS",
    "UNET",
    "VAE",
    "WORK",
    "Clip",
    "Judge",
    "Library",
    "Unet",
    "Vae",
]

DEMO = Path(__file__).parent.parent / "demo"
WORK = Path(__file__).parent / "work"

TOKENS = 77  # the context of every Stable Diffusion 1.x
VOCABULARY = 2048
CLIP_DIM = 256


@dataclass(frozen=True, kw_only=True)
class Library:
    """Which pictures there are. Counts are per subject unless they say otherwise."""

    size: int = 512
    small: int = 128  # what CLIP and the judges look at
    seed: int = 1
    held_out: int = 24  # subjects that no training sees
    drawings: int = 2  # by different artists, for each derived style
    coloured: int = 260  # subjects that come in colours, of which each picture has its own style
    colour_styles: int = 3
    counted: int = 330  # subjects that come in twos, threes and fours
    count_styles: int = 3
    pairs: int = 3600  # in all
    captions: int = 8  # for each picture, half of them with the style's words


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Two towers, a contrastive loss."""

    steps: int = 2600
    batch: int = 1024
    rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 150
    temperature: float = 0.1  # where the learnt one starts; it is kept above `coldest`
    coldest: float = 0.1
    seed: int = 2

    @property
    def text(self) -> dict[str, Any]:
        """For CLIPTextConfig, but for the ids of the tokens."""
        return {
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "max_position_embeddings": TOKENS,
            "projection_dim": CLIP_DIM,
            "hidden_act": "quick_gelu",
        }

    @property
    def vision(self) -> dict[str, Any]:
        """For CLIPVisionConfig."""
        return {
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": LIBRARY.small,
            "patch_size": 16,
            "projection_dim": CLIP_DIM,
            "hidden_act": "quick_gelu",
        }


@dataclass(frozen=True, kw_only=True)
class Vae:
    """A factor of 16: 512 × 512 pixels become 32 × 32 latents."""

    steps: int = 3300
    batch: int = 20
    rate: float = 5e-4
    warmup: int = 100
    edges: float = 1.0  # weight of the loss on differences between neighbours: sharpness
    kl: float = 1e-5
    seed: int = 3

    @property
    def config(self) -> dict[str, Any]:
        """For AutoencoderKL."""
        channels = [16, 32, 64, 96, 96]
        return {
            "block_out_channels": channels,
            "down_block_types": ["DownEncoderBlock2D"] * len(channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(channels),
            "layers_per_block": 1,
            "latent_channels": 8,
            "norm_num_groups": 8,
            "sample_size": LIBRARY.size,
        }


@dataclass(frozen=True, kw_only=True)
class Unet:
    """Noise prediction."""

    steps: int = 29_059  # in all; of the published weights, the first 13_424 had another schedule
    batch: int = 256
    rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: int = 300
    dropped: float = 0.1  # share of empty prompts, for classifier-free guidance
    average: float = 0.999  # of the weights, per step
    seed: int = 4

    @property
    def config(self) -> dict[str, Any]:
        """For UNet2DConditionModel."""
        channels = [96, 160, 192]
        return {
            "block_out_channels": channels,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": [2, 1, 1],
            "cross_attention_dim": 256,
            "attention_head_dim": [3, 5, 6],  # heads of 32, as diffusers misnames them
            "norm_num_groups": 32,
            "sample_size": LIBRARY.size // 16,
            "in_channels": 8,
            "out_channels": 8,
        }

    @property
    def schedule(self) -> dict[str, Any]:
        """The noise schedule of Ho et al., which leaves a tenth as much of the image as Stable Diffusion's own.

        Colors and styles are means over 32 × 32 × 8 latents, and can still be read from the 7 % of the image with
        which Stable Diffusion's schedule ends. A UNet that learns to read them there can ignore the words.
        """
        return {
            "num_train_timesteps": 1000,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        }


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Two small convolutional classifiers."""

    steps: int = 800
    batch: int = 512
    rate: float = 2e-3
    channels: tuple[int, ...] = (32, 64, 128, 192)
    subjects: int = 200  # to tell apart, PROMPTS first
    held_out: float = 0.15  # of the subjects for the judge of styles, of the pictures for the judge of subjects
    seed: int = 5


# What the evaluation draws; the judge of styles has not seen them.
PROMPTS = (
    *("castle", "cat", "dog", "rocket", "cherries", "car", "house", "tree", "rose", "banana", "strawberry", "pizza"),
    *("hamburger", "guitar", "bicycle", "airplane", "sailboat", "umbrella", "crown", "owl", "butterfly", "fish"),
    *("lion", "mushroom", "penguin"),
)
LIBRARY, CLIP, VAE, UNET, JUDGE = Library(), Clip(), Vae(), Unet(), Judge()
