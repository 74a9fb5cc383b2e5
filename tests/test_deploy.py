"""No line of .dockerignore hides a folder that `cog build --separate-weights` copies by name: such a build fails."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest
from pathspec import GitIgnoreSpec

from tests.snapshot import CLIP, MODEL, ROOT

LARGE = 10 * 2**20  # bytes from which Cog takes a file for weights
SKIPPED = (".cog", ".git", "__pycache__")
SUFFIXES = (
    *(".py", ".ipynb", ".whl", ".jpg", ".jpeg", ".png", ".webp", ".svg", ".gif", ".avif", ".heic", ".mp4", ".mov"),
    *(".avi", ".wmv", ".mkv", ".webm", ".mp3", ".wav", ".ogg", ".flac", ".aac", ".m4a", ".log"),
)


def checkout() -> dict[str, int]:
    """The files of the checkout and their sizes in bytes, without .cog and .git, which Cog never copies."""
    found = {}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if Path(folder) != ROOT or name not in (".cog", ".git")]
        for path in (Path(folder, name) for name in files):
            found[path.relative_to(ROOT).as_posix()] = path.lstat().st_size
    return found


def copied(files: Mapping[str, int]) -> set[str]:
    """The folders and files that Cog names in COPY lines: FindWeights in its pkg/weightslegacy/weights.go."""
    code = [path for path in files if path.endswith((".py", ".ipynb"))]
    large = [
        PurePosixPath(path)
        for path, size in files.items()
        if size >= LARGE and not path.startswith(SKIPPED) and not path.endswith(SUFFIXES)
    ]
    folders = {path.parent for path in large if ".git" not in path.parent.parts and path.parent.name}
    highest = [str(folder) for folder in folders if not folders.intersection(folder.parents)]
    without_code = {folder for folder in highest if not any(path.startswith(folder) for path in code)}
    return without_code | {path.name for path in large if not path.parent.name}


def hidden(paths: set[str]) -> set[str]:
    """The paths that .dockerignore leaves out: it reads as a .gitignore does, but from the top folder only."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    spec = GitIgnoreSpec.from_lines(f"/{line}" for line in lines if line and not line.startswith("#"))
    return set(spec.match_files(paths))


def test_a_separate_layer_of_weights_can_be_built_of_the_checkout() -> None:
    assert "weights/demo/unet" in copied(checkout())
    assert not hidden(copied(checkout()))


@pytest.mark.parametrize(
    "folder",
    [
        f"weights/{MODEL}/unet",
        f"weights/{CLIP}",
        "weights/training/work/unet",
        "outputs",
        "outputs/evaluation",
        "venv/lib/python3.11/site-packages/nvidia/cublas/lib",
        ".mypy_cache/3.11",
    ],
)
def test_a_large_file_is_copied_from_wherever_it_lands(folder: str) -> None:
    paths = copied({**checkout(), f"{folder}/large.bin": LARGE})
    assert folder in paths
    assert not hidden(paths)


def test_a_large_file_beside_predict_is_copied() -> None:
    paths = copied({**checkout(), "large.bin": LARGE, "small.bin": LARGE - 1})
    assert "large.bin" in paths
    assert "small.bin" not in paths
    assert not hidden(paths)


@pytest.mark.parametrize("file", [".cog/download/large.bin", ".cog/mypy/3.11/cache.db", "outputs/large.png"])
def test_downloads_caches_and_images_are_not_copied(file: str) -> None:
    assert copied({**checkout(), file: LARGE}) == copied(checkout())


def test_a_hidden_folder_is_noticed() -> None:
    assert hidden(copied({**checkout(), "tests/data/large.bin": LARGE})) == {"tests/data"}


@pytest.mark.parametrize(
    "file", ["output.0.png", "outputs/txt2img-samples/a.webp", ".git/index", "tests/models/hub.py"]
)
def test_images_and_tests_stay_out_of_the_image(file: str) -> None:
    assert hidden({file, "predict.py", "aesthetic/models/download.py"}) == {file}
