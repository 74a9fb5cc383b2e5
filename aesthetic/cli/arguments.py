"""Flags that several commands share, made from Request's fields, and the inputs that they give."""

import argparse
import os
import socket
from pathlib import Path
from typing import Any

from ..embeddings.registry import Registry, is_path
from ..errors import RequestError, SettingError, naming_input
from ..request import FIELDS, Request, base_type

__all__ = [
    "HelpFormatter",
    "add_ckpt",
    "add_drawing",
    "add_input",
    "aesthetic_input",
    "check_drawing",
    "given_inputs",
    "given_path",
    "prompts_in",
    "require_port",
    "require_writable",
]

DRAWING = {  # the inputs of txt2img and sweep, with the flags of the original script
    "prompt": "--prompt",
    "negative_prompt": "--negative_prompt",
    "long_prompt": "--long_prompt",
    "num_inference_steps": "--ddim_steps",
    "image": "--image",
    "mask": "--mask",
    "prompt_strength": "--prompt_strength",
    "lora": "--lora",
    "lora_scale": "--lora_scale",
    "height": "--H",
    "width": "--W",
    "guidance_scale": "--scale",
    "seed": "--seed",
    "aesthetic_lr": "--aesthetic_lr",
    "disable_safety_checker": "--disable_safety_checker",
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that are not blank, false or zero."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def add_ckpt(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the model."""
    parser.add_argument(
        "--ckpt",
        metavar="MODEL",
        help="Model: a name in weights/manifest.json, a folder or a .safetensors file. Blank: AESTHETIC_MODEL.",
    )


def add_input(parser: argparse.ArgumentParser, name: str, flag: str | None = None, **options: Any) -> None:
    """Add the flag of a Request field, with the field's type, default, choices and help unless `options` differ.

    flag: what the flag is called if not --name.
    """
    spec = FIELDS[name]
    facts: dict[str, Any] = {"dest": name, "default": spec.default, "help": spec.metadata["help"]}
    kind = base_type(spec)
    if kind is bool:
        facts["action"] = "store_true"
    elif kind is Path:
        facts |= {"type": given_path, "metavar": "FILE"}
    elif kind is str:
        facts["choices"] = spec.metadata.get("choices")
    else:
        facts["type"] = kind
    parser.add_argument(flag or f"--{name}", **facts | options)


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """Add the flags that txt2img and sweep share."""
    for name, flag in DRAWING.items():
        add_input(parser, name, flag)
    parser.set_defaults(seed=42)  # the original's
    add_ckpt(parser)


def given_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """The Request fields among the options."""
    return {name: value for name, value in vars(options).items() if name in FIELDS}


def aesthetic_input(path_or_name: str) -> dict[str, Any]:
    """The input for an aesthetic's file or for its name, whichever the text means."""
    if is_path(path_or_name):
        return {"aesthetic_embedding_file": Path(path_or_name)}
    return {"aesthetic_embedding": path_or_name}


def check_drawing(request: Request, model: str | None) -> None:
    """Refuse a damaged file, an unknown name, or one for another model, before the model is loaded.

    Checks without torch, which takes seconds to import, come first.
    """
    from ..images import init_image, user_images
    from ..models import checkpoint

    clip_space, registry = checkpoint.locate(model).clip_space, Registry()
    name, mix, file = request.aesthetic_embedding, request.mix, request.aesthetic_embedding_file
    init_image.load_init_image(request)
    if not request.is_plain:
        if request.aesthetic_images is not None:
            with naming_input("aesthetic_images"):
                next(user_images.read_images(request.aesthetic_images, user_images.UPLOAD, label="the file"))
        if name is not None:
            registry.find(name, clip_space)
        elif request.aesthetic_source == "aesthetic_embedding" and clip_space is not None:
            registry.find(registry.default(clip_space), clip_space)
        for part in mix:
            registry.find(part, clip_space)
    if request.lora is not None:
        from ..models.lora_file import load_lora

        load_lora(request.lora)
    if not request.is_plain and (name or mix or file):
        from ..embeddings.resolve import resolve

        resolve(registry, name=name, weights=mix, file=file, clip_space=clip_space)


def given_path(text: str) -> Path:
    """A path on the command line. Blank, as from an unset shell variable, it is an error, not the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be blank")
    return Path(text)


def prompts_in(flag: str, path: Path, comment: str | None = None) -> list[str]:
    """The prompts in a file, one per line, without the lines that start with `comment`. Raises RequestError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{flag} {path} can't be read: {error}") from error
    prompts = [line for line in lines if line.strip() and not (comment and line.startswith(comment))]
    if not prompts:
        raise RequestError(f"{flag} {path} holds no prompt: one per line was expected")
    return prompts


def require_port(host: str, port: int, family: int = socket.AF_INET) -> None:
    """Raise SettingError if a port can't be listened on."""
    if not 0 <= port <= 65535:
        raise SettingError(f"--port must be 0 to 65535, not {port}")
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise SettingError(f"--port {port} of --host {host} can't be used ({error}); choose a free one") from error


def require_writable(path: Path, *suffixes: str, flag: str = "-o") -> None:
    """Raise RequestError unless `flag`'s `path` has one of the suffixes and is in a folder that can be written to."""
    if not path.parent.is_dir():
        raise RequestError(f"{flag} {path}: there is no folder {path.parent}")
    if path.suffix not in suffixes or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise RequestError(
            f"{flag} must name a {' or '.join(suffixes)} file in a folder that can be written to, not {str(path)!r}"
        )
