"""Write down what is in weights/demo and make its aesthetics: the last step of the training.

    python -m weights.training.register PICTURES

PICTURES holds a folder of pictures for each style. weights/manifest.json gets the sha256 of every file of the demo
model, `python -m aesthetic embed` makes embeddings/STYLE.safetensors of each folder, and embeddings/index.json lists
them after the published ones. The service is run as its users run it, and not imported.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .captions import AESTHETICS

ROOT = Path(__file__).parents[2]
MODEL = "demo"
DEFAULT = "gold"
FOR_READERS = (".md", ".png", ".jpg", ".webp")  # beside the model, and no part of it


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="a folder with a folder for each style")
    pictures = parser.parse_args(arguments).pictures
    missing = [style for style in AESTHETICS if not (pictures / style).is_dir()]
    if missing:
        raise SystemExit(f"{pictures} has no folder {' and no folder '.join(missing)}")
    if not (ROOT / "weights" / MODEL / "model_index.json").is_file():
        raise SystemExit(f"weights/{MODEL} is not whole: python -m weights.training export writes it")
    register(ROOT, pictures)


def register(home: Path, pictures: Path) -> None:
    """Bring manifest, aesthetics and index of `home` in line with its weights/demo and with the pictures."""
    write_manifest(home, clip_space=None)  # embed refuses files that the manifest does not list
    notes = {style: embed(home, pictures / style, style) for style in AESTHETICS}
    [clip_space] = {note["space"] for note in notes.values()}
    write_manifest(home, clip_space=clip_space)
    write_index(home, notes)


def write_manifest(home: Path, *, clip_space: str | None) -> None:
    """The demo's entry with every file that is there; its licence and revision stay."""
    path = home / "weights" / "manifest.json"
    manifest = read_json(path)
    folder = home / "weights" / MODEL
    files = {
        file.relative_to(folder).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in model_files(folder)
    }
    manifest[MODEL] |= {"clip_space": clip_space, "files": files}
    write_json(path, manifest)


def model_files(folder: Path) -> Iterable[Path]:
    """The files of a snapshot, in order."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix not in FOR_READERS]


def embed(home: Path, pictures: Path, style: str) -> dict[str, str]:
    """Make the aesthetic of a style; returns the notes that are in its file."""
    target = home / "embeddings" / f"{style}.safetensors"
    subprocess.run(
        [sys.executable, "-m", "aesthetic", "embed", pictures.resolve(), "-o", target.resolve()],
        cwd=ROOT,
        env={**os.environ, "AESTHETIC_HOME": str(home.resolve()), "AESTHETIC_MODEL": MODEL},
        check=True,
    )
    with safe_open(target, framework="pt") as file:
        notes: dict[str, str] = file.metadata()
    return notes


def write_index(home: Path, notes: dict[str, dict[str, str]]) -> None:
    """The demo's aesthetics anew, after those that are downloaded."""
    path = home / "embeddings" / "index.json"
    index = {name: entry for name, entry in read_json(path).items() if "url" in entry}
    for style, note in notes.items():
        file = f"{style}.safetensors"
        index[style] = {
            "file": file,
            "sha256": sha256(path.parent / file),
            "clip_space": note["space"],
            "made_of": f"{note['pictures']} emoji drawn in the style {style}",
        } | ({"default": True} if style == DEFAULT else {})
    write_json(path, index)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON object, as it is laid out in the repository."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
