"""recipe: what made a picture, and the command that makes it again."""

import argparse
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..models.manifest import read_manifest
from ..request import Request
from ..settings import home
from .arguments import DEFAULTS, given_path
from .txt2img import STEERING, WRITING

if TYPE_CHECKING:
    from ..images.metadata import Recipe

__all__ = ["add", "escaped"]


def add(parser: argparse.ArgumentParser) -> None:
    """Add what recipe takes, and what it runs."""
    parser.set_defaults(run=recipe)
    parser.add_argument("picture", type=given_path, help="a PNG, WebP or JPEG that was drawn here")


def recipe(options: argparse.Namespace) -> None:
    """What made a picture, and the command that makes it again."""
    from ..images import metadata

    found = metadata.read_recipe(options.picture)
    request = found.settings()
    settings = {name: value for name, value in asdict(request).items() if value is not None}
    facts = {f"{kind} {name}": text for kind in ("model", "aesthetic") for name, text in getattr(found, kind).items()}
    for name, value in {**settings, **facts, **found.versions}.items():
        print(f"{name:<24}{escaped(str(value))}")
    print("\nTo draw it again:\n")
    manifest = read_manifest(home() / "weights")
    model = found.model["name"] if found.model["name"] in manifest else "MODEL"
    print(" ".join(map(_quoted, _command(found, request, model))))
    if model == "MODEL":
        print(f"\nMODEL is the folder or file of the model called {found.model['name']}.")
    for name, sha256 in found.files.items():
        print(f"\n{name.upper()} is the {name} with the sha256 {sha256}.")
    kinds = {"file": "the aesthetic", "pictures": "what 'python -m aesthetic embed' makes of the pictures"}
    kind = kinds.get(found.aesthetic.get("source", "name"))
    if kind is not None:
        print(f"\nFILE is {kind} with the sha256 {found.aesthetic['sha256']}.")


def _command(found: "Recipe", request: Request, model: str) -> list[str]:
    """The txt2img command line of a recipe. Files that are not ours to know have to be put in by hand."""
    flags: dict[str, object] = {
        "--ckpt": model,
        "--prompt": request.prompt,
        "--negative_prompt": request.negative_prompt,
        "--seed": request.seed,
        "--W": request.width,
        "--H": request.height,
        "--scheduler": request.scheduler,
        "--ddim_steps": request.num_inference_steps,
        "--ddim_eta": request.ddim_eta,
        "--scale": request.guidance_scale,
        "--aesthetic_steps": request.aesthetic_steps,
    }
    if found.aesthetic:
        flags["--aesthetic_lr"] = request.aesthetic_lr
        if request.aesthetic_mix is None:
            flags["--aesthetic_embedding"] = request.aesthetic_embedding or "FILE"
    flags |= {f"--{name}": name.upper() for name in found.files}
    for name, setting in (("image", "prompt_strength"), ("lora", "lora_scale")):
        if name in found.files:
            flags[f"--{setting}"] = getattr(request, setting)
    command = ["python", "-m", "aesthetic", "txt2img", "--n_samples", "1", "--n_iter", "1", "--skip_grid"]
    for name in (*STEERING, *WRITING, "long_prompt", "disable_safety_checker"):
        value = getattr(request, name)
        if value is True:
            command.append(f"--{name}")
        elif value != DEFAULTS[name]:
            flags[f"--{name}"] = value
    return command + [f"{flag}={value}" for flag, value in flags.items()]


def escaped(text: str) -> str:
    """`text`, which is anybody's, with nothing in it that could pass for a line of ours or act on a terminal."""
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


def _quoted(word: str) -> str:
    """`word` for bash or zsh, which turn an escaped letter between $'' back into itself."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + escaped(word.replace("\\", r"\\").replace("'", r"\'")) + "'"
