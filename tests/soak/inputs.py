"""Inputs at random, good and bad, from the limits that Request has for each."""

import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from aesthetic.request import FIELDS, RENAMED, SOURCES, base_type
from tests.images.test_user_images import encoded, zipped
from tests.serving import data_url

# The greatest values that are drawn with; the service's own limits take minutes for an image.
SMALL = {"width": 192, "height": 192, "num_inference_steps": 6, "aesthetic_steps": 2, "num_outputs": 2}
LARGE = {"width": 1024, "height": 768, "num_inference_steps": 20, "aesthetic_steps": 20, "num_outputs": 4}
LEAST = {"num_inference_steps": 5}  # so that every sampler works
WORDS = (
    "a",
    "cat",
    "dog",
    "house",
    "red",
    "(blue:1.3)",
    "of",
    "night",
    "ünïcode",
    "猫",
    "🐱",
    "painting",
    "[old]",
    "\n",
)
GIVEN, SPOILED = 0.2, 0.2  # probability of an optional input, and that one input is bad
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


class Inputs:
    """Draws the inputs of one prediction after another."""

    def __init__(self, dice: random.Random, home: Path, model: Path, most: Mapping[str, int]) -> None:
        """home: has the aesthetics; model: the folder of the one that draws; most: the greatest values."""
        self._dice, self._most = dice, most
        index = json.loads((home / "embeddings" / "index.json").read_text(encoding="utf-8"))
        found = {name: home / "embeddings" / entry["file"] for name, entry in index.items()}
        self._aesthetics = {name: path.read_bytes() for name, path in found.items() if path.exists()}
        self._files = self._make_files(model)
        self._all_files = [file for files in self._files.values() for file in files]
        self._texts: dict[str, Callable[[], str]] = {
            "aesthetic_embedding": lambda: dice.choice([*self._aesthetics]),
            "aesthetic_mix": self._mix,
            "aesthetic_sweep": lambda: ",".join(map(str, sorted(dice.sample(range(most["aesthetic_steps"] + 1), 2)))),
        }

    def draw(self) -> dict[str, Any]:
        """Inputs as JSON has them; in a fifth of all cases one is bad, and some contradict one another by chance."""
        names = [name for name in FIELDS if name in self._most or self._dice.random() < GIVEN]
        inputs = {name: self._good(FIELDS[name]) for name in self._agreeing(names)}
        if self._dice.random() < GIVEN:  # an old name in place of the new one
            old = self._dice.choice([*RENAMED])
            value = inputs.pop(RENAMED[old], None)
            inputs[old] = self._dice.random() < 0.5 if old == "plms" else value or 2
        if self._dice.random() < SPOILED:
            name = self._dice.choice([*FIELDS])
            inputs[name] = self._bad(FIELDS[name])
        return inputs

    def _agreeing(self, names: list[str]) -> list[str]:
        """Without those that contradict others, mostly."""
        if self._dice.random() < SPOILED:
            return names
        source = self._dice.choice(SOURCES)
        without = {*SOURCES} - {source} | ({"mask"} if "image" not in names else set())
        if "aesthetic_sweep" in names:
            without |= {"num_outputs", "aesthetic_until"}
        return [name for name in names if name not in without]

    def _good(self, spec: Field[Any]) -> Any:
        limits, kind, most = spec.metadata, base_type(spec), self._most.get(spec.name)
        if kind is Path:
            return data_url(self._dice.choice(self._files.get(spec.name, self._all_files)))
        if spec.name in self._texts:
            return self._texts[spec.name]()
        if "choices" in limits:
            return self._dice.choice([choice for choice in limits["choices"] if most is None or choice <= most])
        if kind is bool:
            return self._dice.random() < 0.5
        if kind is str:
            words = " ".join(self._dice.choices(WORDS, k=self._dice.choice([1, 5, 20, 300])))
            return words[: limits["max_length"]]
        low, high = LEAST.get(spec.name, limits["ge"]), limits["le"] if most is None else most
        return self._dice.randint(low, high) if kind is int else round(self._dice.uniform(low, high), 4)

    def _bad(self, spec: Field[Any]) -> Any:
        limits, kind = spec.metadata, base_type(spec)
        values: list[Any] = [None, {"a": 1}, [], "nonsense"]
        if "ge" in limits:
            values += [limits["ge"] - 1, limits["le"] + 1, 1e400, 10**400]
        if "max_length" in limits:
            values += ["x" * (limits["max_length"] + 1), "\x00", "\ud800"]
        if kind is Path:
            whole = self._dice.choice(self._all_files)
            values += [data_url(data) for data in (b"", b"text", whole[: len(whole) // 2], b"\x00" * 1000)]
            values += ["data:;base64,!", "http://127.0.0.1:9/nobody", "file:///etc/passwd"]
        return self._dice.choice(values)

    def _mix(self) -> str:
        names = self._dice.sample([*self._aesthetics], 3)
        return " ".join(f"{name}:{self._dice.uniform(-1, 1):.2f}" for name in names)

    def _make_files(self, model: Path) -> dict[str, list[bytes]]:
        images = [encoded(self._image(kind), kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF")]
        return {
            "aesthetic_embedding_file": [*self._aesthetics.values()],
            "aesthetic_images": [*images, zipped({f"{i}.png": image for i, image in enumerate(images)})],
            "image": images,
            "mask": [encoded(self._image("PNG").convert("L"))],
            "lora": [lora(model, rank) for rank in (1, 8)],
        }

    def _image(self, kind: str) -> Image.Image:
        side = self._dice.randint(16, 200)  # of one shape, for masks to fit
        noise = Image.frombytes("RGB", (8, 8), self._dice.randbytes(192)).resize((4 * side, 3 * side))
        return noise.convert("P") if kind == "GIF" else noise


def lora(model: Path, rank: int) -> bytes:
    """A LoRA with random numbers for one layer of the model in a folder in diffusers' layout."""
    with safe_open(next((model / "unet").glob("*.safetensors")), "pt") as weights:
        height, width = weights.get_slice(f"{ATTENTION}.weight").get_shape()
    source = torch.Generator().manual_seed(rank)
    down, up = (torch.randn(shape, generator=source) / 100 for shape in ((rank, width), (height, rank)))
    name = f"lora_unet_{ATTENTION.replace('.', '_')}"
    return save({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up})


def is_image(data: bytes) -> bool:
    """Whether a file is a whole image that is not of one color."""
    with Image.open(io.BytesIO(data)) as image:
        return any(low < high for low, high in image.convert("RGB").getextrema())  # type: ignore[misc]
