"""Fetch the files in weights/manifest.json and embeddings/index.json, and verify each by its digest.

A file is downloaded to .cog/download/, verified there and then moved to its place, so a partial file never looks
complete. Bundled and downloaded files are only verified.
"""

import errno
import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from filelock import FileLock
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from tqdm import tqdm

from ..embeddings import registry
from ..errors import CheckpointError, naming_input
from ..settings import DOWNLOAD, INCOMPLETE, find, home
from .manifest import File, Source, read_manifest

__all__ = ["provide"]

MAX_URL_BYTES = 2**20  # files from URLs have a few kB; a longer one is cut here and fails its digest
TIMEOUT = 30  # seconds without a byte from a URL
AGAIN = f"run {DOWNLOAD} again: it fetches the files that are still missing"
WRONG = (
    "its sha256 is {found}, not {expected}, so it was discarded; if Hugging Face's cache holds a damaged copy, "
    f"delete that; {AGAIN}"
)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A file, its place and its origin: `file.url`, the hub, or with neither the checkout."""

    path: Path
    file: File
    hub: tuple[str, str, str] | None = None  # repository, name and revision

    @property
    def bundled(self) -> bool:
        """Whether the file comes with the checkout."""
        return self.file.url is None and self.hub is None


def provide(names: Sequence[str]) -> None:
    """Fetch the named snapshots, or all, and their aesthetics; verify the bundled ones last. Raises CheckpointError."""
    sources = _choose(names, home() / "weights")
    for name, source in sources.items():
        print(f"{name} ({source.license}): {'bundled' if source.bundled else home() / 'weights' / name}")
    files = [*_snapshot_files(sources, home() / "weights"), *_aesthetics(sources, home() / "embeddings")]
    try:
        # The small files from URLs go first, so that they do not fail after gigabytes.
        for wanted in sorted(files, key=lambda wanted: wanted.hub is not None):
            if not wanted.bundled:
                _fetch(wanted, home())
    except KeyboardInterrupt:
        print(f"stopped; {AGAIN}", file=sys.stderr)
        raise
    wrong = [wanted.path for wanted in files if wanted.bundled and not _is_right(wanted.path, wanted)]
    if wrong:
        raise CheckpointError(
            f"{wrong[0]} and {len(wrong) - 1} other files are missing or have the wrong sha256: "
            f"{INCOMPLETE.format('weights embeddings')}"
        )
    print("Everything is there, and every digest is right.")


def _choose(names: Sequence[str], weights: Path) -> dict[str, Source]:
    manifest = read_manifest(weights)
    unknown = [name for name in names if name not in manifest]
    if unknown:
        raise CheckpointError(f"there is no snapshot {unknown[0]!r}; there are {', '.join(manifest)}")
    return {name: manifest[name] for name in names or manifest}


def _snapshot_files(sources: Mapping[str, Source], weights: Path) -> Iterator[_Wanted]:
    for name, source in sources.items():
        for filename, file in source.files.items():
            hub = (source.repo_id, filename, source.revision) if source.repo_id is not None else None
            yield _Wanted(path=find(weights / name) / filename, file=file, hub=hub)


def _aesthetics(sources: Mapping[str, Source], folder: Path) -> Iterator[_Wanted]:
    """The published aesthetics if any snapshot is from the hub, and the bundled ones if any snapshot is bundled."""
    entries = registry.Registry(folder)
    for name, entry in entries.entries.items():
        if any(source.bundled if entry.url is None else source.repo_id is not None for source in sources.values()):
            yield _Wanted(path=entries.path(name), file=File(sha256=entry.sha256, url=entry.url))


def _fetch(wanted: _Wanted, home: Path) -> None:
    """Download a file to its place unless it is there and right. Raises CheckpointError."""
    with naming_input(str(wanted.path.relative_to(home))), _explained():
        if _is_right(wanted.path, wanted):
            return
        with _staging(home) as folder:
            if _is_right(wanted.path, wanted):  # fetched by another run while this one waited
                return
            path = _download(wanted, folder)
            if not _is_right(path, wanted):
                raise CheckpointError(WRONG.format(found=_sha256(path), expected=wanted.file.sha256))
            _move(path, wanted.path)


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """An empty folder that git and Cog ignore, without the leftovers of a killed run; other runs wait for it."""
    folder = home / ".cog" / "download"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _download(wanted: _Wanted, folder: Path) -> Path:
    """Download the file into `folder`, unverified."""
    if wanted.hub is not None:
        repo_id, filename, revision = wanted.hub
        return Path(hf_hub_download(repo_id=repo_id, filename=filename, revision=revision, local_dir=folder))
    assert wanted.file.url is not None, "bundled files are not downloaded"
    path = folder / wanted.path.name
    with httpx2.stream("GET", wanted.file.url, follow_redirects=True, timeout=TIMEOUT) as response:
        path.write_bytes(next(response.raise_for_status().iter_bytes(MAX_URL_BYTES), b""))
    return path


def _move(path: Path, target: Path) -> None:
    """Move a file to its place atomically, also from another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    shutil.move(path, beside)
    beside.replace(target)


def _is_right(path: Path, wanted: _Wanted) -> bool:
    """Whether `path` has the file's sha256 or, where that is unconfirmed, the hub's git SHA-1."""
    if not path.is_file():
        return False
    if _sha256(path) == wanted.file.sha256:
        return True
    if wanted.file.confirmed or wanted.hub is None:
        return False
    data = path.read_bytes()
    sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    repo_id, filename, revision = wanted.hub
    return sha1 == get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision)).etag


def _sha256(path: Path) -> str:
    digest, size = hashlib.sha256(), path.stat().st_size
    name = f"verifying {path.name[:30]}"
    with (
        path.open("rb") as file,
        tqdm.wrapattr(file, "read", total=size, desc=name, leave=False, disable=size < 10**8) as reader,
    ):
        while block := reader.read(2**22):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _explained() -> Iterator[None]:
    """Raise the errors of a download as CheckpointError, with a remedy."""
    try:
        yield
    except (httpx2.HTTPError, OSError, RuntimeError) as error:  # hf_xet raises RuntimeError
        raise CheckpointError(f"{_advice(error)} {AGAIN}") from error


def _advice(error: BaseException) -> str:
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # huggingface_hub's own message omits the reason
    said = " ".join(str(error).split())
    if isinstance(error, httpx2.RequestError | OfflineModeIsEnabled):
        return f"the connection failed ({said}); check the network and"
    if isinstance(error, httpx2.HTTPError):
        return f"the server refused it ({said}); check HF_ENDPOINT, HF_TOKEN and your proxy, if any, and"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.strerror}); make room and"
    return f"{said};"
