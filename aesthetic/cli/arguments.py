"""Flags that several commands have, and what they say of a request."""

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..request import Request

__all__ = [
    "DEFAULTS",
    "add_ckpt",
    "add_drawing",
    "aesthetic_input",
    "check_drawing",
    "drawing_inputs",
    "given_path",
    "prompts_in",
    "require_writable",
]

DEFAULTS = {spec.name: spec.default for spec in fields(Request)}


def add_ckpt(parser: argparse.ArgumentParser) -> None:
    """The flag that names the model."""
    parser.add_argument(
        "--ckpt",
        metavar="MODEL",
        help="a name in weights/manifest.json, a folder or a .safetensors file (AESTHETIC_MODEL)",
    )


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """The flags that txt2img and sweep share."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    flag = parser.add_argument
    flag("--prompt", default=DEFAULTS["prompt"], help="what to draw")
    flag("--negative_prompt", default="", help="what to keep out")
    flag("--long_prompt", action="store_true", help="read all of a prompt, and weights in it as (red:1.3)")
    flag("--ddim_steps", type=int, default=DEFAULTS["num_inference_steps"], help="denoising steps")
    flag("--image", type=given_path, metavar="FILE", help="a picture to start from, fitted into W × H")
    flag("--mask", type=given_path, metavar="FILE", help="what of it to redraw: white")
    flag("--prompt_strength", type=float, default=DEFAULTS["prompt_strength"], help="how much of it to redraw")
    flag("--lora", type=given_path, metavar="FILE", help="a LoRA to draw with, in .safetensors")
    flag("--lora_scale", type=float, default=DEFAULTS["lora_scale"], help="how much of it, 0 to 2")
    flag("--H", type=int, default=DEFAULTS["height"], help="height in pixels")
    flag("--W", type=int, default=DEFAULTS["width"], help="width in pixels")
    flag("--scale", type=float, default=DEFAULTS["guidance_scale"], help="guidance scale")
    flag("--seed", type=int, default=42, help="of the first picture; each takes the one after it")
    flag("--aesthetic_lr", type=float, default=DEFAULTS["aesthetic_lr"], help="length of a step")
    flag("--disable_safety_checker", action="store_true", help="show pictures that it would keep back")
    add_ckpt(parser)


def drawing_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `add_drawing` say that goes into every request alike."""
    return {
        "negative_prompt": options.negative_prompt,
        "long_prompt": options.long_prompt,
        "aesthetic_lr": options.aesthetic_lr,
        "image": options.image,
        "mask": options.mask,
        "prompt_strength": options.prompt_strength,
        "lora": options.lora,
        "lora_scale": options.lora_scale,
        "width": options.W,
        "height": options.H,
        "num_inference_steps": options.ddim_steps,
        "guidance_scale": options.scale,
        "disable_safety_checker": options.disable_safety_checker,
    }


def aesthetic_input(path_or_name: str | None) -> dict[str, Any]:
    """A path if it looks like one (a folder in it, a suffix after it), else a name."""
    if path_or_name is None:
        return {}
    path = Path(path_or_name)
    is_path = path.suffix in (".pt", ".safetensors") or len(path.parts) > 1
    return {"aesthetic_embedding_file": path} if is_path else {"aesthetic_embedding": path_or_name}


def check_drawing(request: Request, model: str | None) -> None:
    """Refuse a file or a name that is no good, or not for this model, before the model is loaded."""
    from ..embeddings.registry import Registry
    from ..embeddings.resolve import resolve
    from ..images.init_image import load_init_image
    from ..models import checkpoint, lora_file

    load_init_image(request)
    if request.lora is not None:
        lora_file.load_lora(request.lora)
    if request.is_plain:
        return
    registry, mix, file = Registry(), request.mix, request.aesthetic_embedding_file
    if request.aesthetic_embedding or mix or file:
        clip_space = checkpoint.locate(model).clip_space
        resolve(registry, name=request.aesthetic_embedding, mix=mix, file=file, clip_space=clip_space)


def given_path(text: str) -> Path:
    """A path on the command line, where a blank one, as of a variable that isn't set, is not the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be blank")
    return Path(text)


def prompts_in(flag: str, path: Path, comment: str | None = None) -> list[str]:
    """The prompts in a file, one a line, but for lines that begin with `comment`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{flag} {path} can't be read: {error}") from error
    prompts = [line for line in lines if line.strip() and not (comment and line.startswith(comment))]
    if not prompts:
        raise RequestError(f"{flag} {path} holds no prompt: one a line was expected")
    return prompts


def require_writable(path: Path, *suffixes: str, flag: str = "-o") -> None:
    """Raise RequestError if `path`, which `flag` gives, is no place for a file of one of these kinds."""
    if path.suffix not in suffixes or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise RequestError(
            f"{flag} must name a {' or '.join(suffixes)} file where one can be written, not {str(path)!r}"
        )
