"""embed, convert and embeddings: make aesthetics from images, convert and list them."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import settings
from ..models.manifest import read_manifest
from .arguments import add_ckpt, given_path, require_writable
from .recipe import escaped
from .sweep import preview

if TYPE_CHECKING:
    from ..embeddings.registry import Registry

__all__ = ["add_convert", "add_embed", "add_embeddings", "convert", "embed", "embeddings"]


def add_embed(parser: argparse.ArgumentParser) -> None:
    """Add the flags of embed."""
    parser.add_argument("images", type=given_path, help="A folder, a zip, a tar or one image.")
    parser.add_argument(
        "-o", "--output", type=given_path, required=True, metavar="NAME.safetensors", help="File to write to."
    )
    parser.add_argument(
        "--skip_unreadable",
        action="store_true",
        help="Leave out images that can't be read, with a warning that names them. Otherwise they are an error.",
    )
    add_ckpt(parser)


def embed(options: argparse.Namespace) -> None:
    """Write the aesthetic of some images, with notes on what it was made from."""
    require_writable(options.output, ".safetensors")
    from ..pipeline.make_aesthetic import average_files

    made, mean = average_files(options.images, options.ckpt, skip_unreadable=options.skip_unreadable)
    replace(made, vector=mean).save(options.output)  # not of unit norm, as the original script wrote it
    print(f"{options.output}: the mean of {made.notes['pictures']} images in the CLIP space {made.clip_space}")


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Add the flags of convert."""
    parser.add_argument("aesthetic", type=given_path, metavar="FILE", help="A .pt or .safetensors file.")
    parser.add_argument(
        "-o", "--output", type=given_path, required=True, metavar="NAME", help="A .pt or .safetensors file to write to."
    )


def convert(options: argparse.Namespace) -> None:
    """Write an aesthetic, with unit norm, as another kind of file, and print its notes."""
    require_writable(options.output, ".pt", ".safetensors")
    from ..embeddings import embedding

    aesthetic = embedding.load_aesthetic(options.aesthetic)
    notes = aesthetic.notes or {"converted_from_sha256": aesthetic.sha256}
    replace(aesthetic, notes=notes).save(options.output)
    print(f"{options.output}: {aesthetic.dim} dimensions, from sha256 {aesthetic.sha256}")
    for name, note in aesthetic.notes.items():
        print(f"{escaped(name):<24}{escaped(note)}")
    if aesthetic.notes and options.output.suffix == ".pt":
        print("The .pt file does not have these notes: the format has no room for them.")


def add_embeddings(parser: argparse.ArgumentParser) -> None:
    """Add the flags of embeddings."""
    flag = parser.add_argument
    flag("--preview", type=given_path, metavar="NAME.png", help="Draw a sheet that shows the effect of each.")
    flag("--num_inference_steps", type=int, default=20, metavar="STEPS", help="Denoising steps of the sheet.")
    add_ckpt(parser)


def embeddings(options: argparse.Namespace) -> None:
    """List the named aesthetics and the models that they fit, or draw a sheet of them."""
    from ..embeddings.registry import Registry

    if options.preview is not None:
        preview(options)
        return
    registry = Registry()
    manifest = read_manifest(settings.home() / "weights")
    for clip_space in dict.fromkeys(entry.clip_space for entry in registry.entries.values()):
        models = [name for name, source in manifest.items() if source.clip_space == clip_space]
        print(f"For {' and '.join([*models, 'any other model'])} of the CLIP space {clip_space}:\n")
        for name in registry.names(clip_space):
            entry = registry.entries[name]
            label = name + (" (default)" if entry.default else "")
            print(f"  {label:<24}{_state(registry, name):<16}{entry.made_of}")
        print()
    if any(_state(registry, name) == "not downloaded" for name in registry.names()):
        print(f"{settings.DOWNLOAD} fetches what is not downloaded.")


def _state(registry: "Registry", name: str) -> str:
    if registry.path(name).is_file():
        return "here"
    return "missing" if registry.entries[name].url is None else "not downloaded"
