"""The strips of images in the READMEs, one for each way to steer and to draw: the images differ in one input.

A strip maps a label to the inputs of its image. All are drawn from the same noise, with what `ALIKE` says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

__all__ = ["ALIKE", "LORA", "START", "Strip", "mask", "strips"]

Strip = Mapping[str, Mapping[str, Any]]
ALIKE: Mapping[str, Any] = {"prompt": "a cat", "aesthetic_embedding": "chalk", "aesthetic_steps": 5}
START: Mapping[str, Any] = {"prompt": "a house", "aesthetic_steps": 0}  # the init image of others


def strips(start: Path, mask: Path, lora: Path) -> dict[str, Strip]:
    """Every strip by its name.

    start: an image drawn with START.
    mask:  of its size, of `mask`.
    lora:  a LoRA of the style LORA.
    """
    return {
        "weight": {
            **{f"weight {weight:g}": {"aesthetic_weight": weight} for weight in (0, 0.25, 0.5, 0.75, 1)},
            "0.5, slerp": {"aesthetic_weight": 0.5, "aesthetic_slerp": True},
        },
        "mix": {mix: {"aesthetic_embedding": None, "aesthetic_mix": mix} for mix in MIXES},
        "text": {
            label: {"aesthetic_text": "a neon sign", "aesthetic_text_angle": angle, "aesthetic_text_negative": away}
            for label, angle, away in (("away, 0.4", 0.4, True), ("0", 0, False), ("0.4", 0.4, False), ("1", 1, False))
        },
        "until": {
            prompt: {"prompt": prompt, "aesthetic_until": 0.4, "aesthetic_steps": 20}
            for prompt in ("a castle", "a cat", "a rocket", "a house")
        },
        "image": {
            f"strength {strength:g}": {"image": start, "prompt_strength": strength} for strength in (0.2, 0.5, 0.8, 1)
        },
        "mask": {
            "image": START,
            "right half anew": {"image": start, "mask": mask, "prompt": "a house"},
        },
        "long_prompt": {
            label: {"prompt": "a castle" + 76 * ", " + "a blueprint", "long_prompt": long, "aesthetic_steps": 0}
            for label, long in (("cut", False), ("long_prompt", True))
        },
        "lora": {
            **{f"scale {scale:g}": {"lora": lora, "lora_scale": scale, "aesthetic_steps": 0} for scale in (0, 0.5, 1)},
            "1, and chalk": {"lora": lora},
        },
    }


LORA = "night"  # the style of the LoRA
MIXES = ("chalk", "chalk night", "chalk neon", "chalk pop")


def mask(size: tuple[int, int]) -> Image.Image:
    """White, which is redrawn, in the right half."""
    image = Image.new("L", size)
    ImageDraw.Draw(image).rectangle((size[0] // 2, 0, *size), fill=255)
    return image
