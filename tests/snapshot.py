"""Write snapshots in the exact layout of the real ones, with random weights, for tests and experiments.

    python -m tests.snapshot FOLDER [--size tiny|full]

makes FOLDER a home (AESTHETIC_HOME) with weights/ and embeddings/: file for file what script/download-weights
leaves, with the same names, keys and formats, and with a manifest and an index that have the right digests.
`full` has the true shapes of Stable Diffusion 1.5; `tiny` has every one of its layers at toy widths and draws in
a second on a CPU. What they draw is noise.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from torch import Tensor

from aesthetic.benchmark import random_model
from aesthetic.benchmark.random_model import SD15

ROOT = Path(__file__).parent.parent
MODEL = "stable-diffusion-v1-5"
CLIP = "clip-vit-large-patch14"

_START, _END = (
    {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    for content in ("<|startoftext|>", "<|endoftext|>")
)
_PREPROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}

# The files of the real snapshot, to the byte once they are dumped: test_snapshot.py compares their digests.
CONFIGS: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "scheduler/scheduler_config.json": SD15["scheduler"],
    **{f"{part}/config.json": SD15[part] for part in ("unet", "vae", "text_encoder")},
    "tokenizer/special_tokens_map.json": {
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": "<|endoftext|>",
        "unk_token": _END,
    },
    "tokenizer/tokenizer_config.json": {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **_START},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **_END},
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": "<|endoftext|>",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **_END},
    },
    "feature_extractor/preprocessor_config.json": {
        **dict(list(_PREPROCESSOR.items())[:2]),
        "do_convert_rgb": True,
        **dict(list(_PREPROCESSOR.items())[2:]),
    },
}
TINY = {f"{part}/config.json": changes for part, changes in random_model.TINY.items()} | {
    "feature_extractor/preprocessor_config.json": {"crop_size": 32, "size": 32}
}
SIZES: dict[str, dict[str, dict[str, Any]]] = {"tiny": TINY, "full": {}}


def write_home(folder: Path, *, size: str = "tiny") -> Path:
    """Make `folder` a home with random weights and eight random aesthetics; the same ones each time."""
    changes = SIZES[size]
    configs = {file: config | changes.get(file, {}) for file, config in CONFIGS.items()}
    vision: dict[str, Any] = SD15["vision"] | changes.get("vision/config.json", {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2209_12330)
        write_model(folder / "weights" / MODEL, configs, vision)
        write_clip(folder / "weights" / CLIP, configs, vision)
        write_embeddings(folder / "embeddings", vision["projection_dim"])
    write_manifest(folder / "weights")
    return folder


def write_model(folder: Path, configs: dict[str, dict[str, Any]], vision: dict[str, Any]) -> None:
    """A Stable Diffusion 1.x snapshot in fp16, with the keys of the time at which it was uploaded."""
    save_weights(diffusers.UNet2DConditionModel.from_config(configs["unet/config.json"]), folder / "unet")
    save_weights(diffusers.AutoencoderKL.from_config(configs["vae/config.json"]), folder / "vae")
    text_config = transformers.CLIPTextConfig(**configs["text_encoder/config.json"])
    save_weights(
        transformers.CLIPTextModel(text_config),
        folder / "text_encoder",
        rename=lambda key: f"text_model.{key}",
        extra=_positions("text_model", text_config.max_position_embeddings),
    )
    save_weights(
        # Its random thresholds are all 1, and no cosine is higher: it lets everything through.
        StableDiffusionSafetyChecker(_clip_config(configs, vision)),
        folder / "safety_checker",
        rename=lambda key: key.replace("vision_model.", "vision_model.vision_model."),
    )
    for file, config in configs.items():
        write_json(folder / file, config)
    write_vocabulary(folder / "tokenizer")


def write_clip(folder: Path, configs: dict[str, dict[str, Any]], vision: dict[str, Any]) -> None:
    """A snapshot of OpenAI's CLIP in fp32, of which the projection and the vision tower are used."""
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    save_weights(
        transformers.CLIPModel(_clip_config(configs, vision)),
        folder,
        extra=_positions("text_model", 77) | _positions("vision_model", patches + 1),
        half=False,
    )
    size = {"crop_size": vision["image_size"], "size": vision["image_size"]}
    write_json(folder / "preprocessor_config.json", _PREPROCESSOR | size)


def write_vocabulary(folder: Path) -> None:
    """The two files of CLIP's byte-pair encoding, with few tokens: see random_model.py."""
    vocabulary, merges = random_model.vocabulary()
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def write_embeddings(folder: Path, dim: int) -> None:
    """Eight random aesthetics under the published names, saved in the published ones' shapes and types."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = json.loads((ROOT / "embeddings" / "index.json").read_text(encoding="utf-8"))
    index = {name: entry for name, entry in ours.items() if "url" in entry}
    for name, entry in index.items():
        vector = torch.randn(dim) if name in ("sac_8plus", "laion_7plus") else torch.randn(1, dim).half()
        torch.save(vector, folder / entry["file"])
        entry["sha256"] = sha256(folder / entry["file"])
    write_json(folder / "index.json", index)


def write_manifest(weights: Path) -> None:
    """weights/manifest.json for the snapshots there. Every file of the real ones must be there, and no other."""
    real = json.loads((ROOT / "weights" / "manifest.json").read_text(encoding="utf-8"))
    manifest = {}
    for name in (MODEL, CLIP):
        paths = [path for path in sorted((weights / name).rglob("*")) if path.is_file()]
        found = {
            path.relative_to(weights / name).as_posix(): {
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in paths
        }
        assert found.keys() == real[name]["files"].keys(), found.keys() ^ real[name]["files"].keys()
        manifest[name] = {**real[name], "files": found}
    write_json(weights / "manifest.json", manifest)


def save_weights(
    model: Any,
    folder: Path,
    *,
    rename: Callable[[str], str] = str,
    extra: dict[str, Tensor] | None = None,
    half: bool = True,
) -> None:
    """Save a model, in fp16 with that in the file's name, or in fp32; `rename` gives the keys in the file."""
    (model.half() if half else model).save_pretrained(folder, variant="fp16" if half else None)
    path = next(folder.glob("*.safetensors"))
    tensors = {rename(key): tensor for key, tensor in load_file(path).items()} | (extra or {})
    save_file(tensors, path, metadata={"format": "pt"})


def turn_a_bit(path: Path, place: int) -> None:
    """Damage a file in one bit of the byte at `place`, which counts from the end if it is negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 64
    path.write_bytes(data)


def write_json(path: Path, content: object) -> None:
    """Write JSON as transformers and diffusers do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clip_config(configs: dict[str, dict[str, Any]], vision: dict[str, Any]) -> transformers.CLIPConfig:
    return transformers.CLIPConfig(
        text_config=configs["text_encoder/config.json"],
        vision_config=vision,
        projection_dim=vision["projection_dim"],
    )


def _positions(prefix: str, count: int) -> dict[str, Tensor]:
    """A buffer that transformers no longer saves, and that old files still hold."""
    return {f"{prefix}.embeddings.position_ids": torch.arange(count)[None]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    options = parser.parse_args()
    write_home(options.folder, size=options.size)
