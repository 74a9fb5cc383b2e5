"""recipe: the settings stored in an image, and the command that draws it again."""

import argparse
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..models.manifest import read_manifest
from ..request import FIELDS, Request
from ..settings import home
from .arguments import DRAWING, given_path

if TYPE_CHECKING:
    from ..images.metadata import Recipe

__all__ = ["add", "escaped", "recipe"]

ALWAYS = {  # named even if they are defaults, which differ in txt2img or may change
    "prompt",
    "negative_prompt",
    "aesthetic_steps",
    "aesthetic_lr",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "seed",
    "ddim_eta",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the argument of recipe."""
    parser.add_argument("image", type=given_path, help="A PNG, WebP or JPEG that was drawn with its recipe.")


def recipe(options: argparse.Namespace) -> None:
    """Print the settings stored in an image, and the command that draws it again."""
    from ..images import metadata

    found = metadata.read_recipe(options.image)
    request = found.settings()
    settings = {name: value for name, value in asdict(request).items() if value is not None}
    facts = {f"{kind} {name}": text for kind in ("model", "aesthetic") for name, text in getattr(found, kind).items()}
    for name, value in {**settings, **facts, **found.versions}.items():
        print(f"{name:<24}{escaped(str(value))}")
    print("\nTo draw it again:\n")
    name, is_local = found.model["name"], found.model["revision"] == "local"
    model = "MODEL" if is_local or name not in read_manifest(home() / "weights") else name
    print(" ".join(map(_quoted, _command(found, request, model))))
    if model == "MODEL":
        print(f"\nMODEL is the {'local ' * is_local}model named {name}.")
    for name, sha256 in found.files.items():
        print(f"\n{name.upper()} is the {name} file with the sha256 {sha256}.")
    kinds = {"file": "the aesthetic", "pictures": "what 'aesthetic embed' makes of the images"}
    if kind := kinds.get(found.aesthetic.get("source", "name")):
        print(f"\nFILE is {kind} with the sha256 {found.aesthetic['sha256']}.")


def _command(found: "Recipe", request: Request, model: str) -> list[str]:
    """The txt2img command line of a recipe, with names in capitals in place of files."""
    words = ["python", "-m", "aesthetic", "txt2img", "--n_samples", "1", "--n_iter", "1", "--skip_grid"]
    words.append(f"--ckpt={model}")
    for name, spec in FIELDS.items():
        value = getattr(request, name)
        if name in ALWAYS or value != spec.default:
            flag = DRAWING.get(name, f"--{name}")
            words.append(flag if value is True else f"{flag}={value}")
    if found.aesthetic and request.aesthetic_embedding is None and request.aesthetic_mix is None:
        words.append("--aesthetic_embedding=FILE")
    return [*words, *(f"--{name}={name.upper()}" for name in found.files)]


def escaped(text: str) -> str:
    """Untrusted `text` with escapes for whatever could start a new line or act on a terminal."""
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


def _quoted(word: str) -> str:
    """`word` quoted for bash or zsh, which decode the escapes of `escaped` inside $''."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + escaped(word.replace("\\", r"\\").replace("'", r"\'")) + "'"
