"""Fetch what the manifest and the index name, and believe nothing that does not have the right sha256.

    python -m aesthetic.download [NAME ...]       all there is, or only the snapshots named

A file is written beside its place, under weights/.partial/, and moved there once its digest is right: a half
file never looks whole. What was interrupted goes on where it stopped, in the same run or the next one; what
is there already is not fetched again; what comes with the checkout is verified only. huggingface_hub knows the
hub's protocol (redirects, tokens from HF_TOKEN, mirrors from HF_ENDPOINT, retries, progress bars), commit.py that of
git repositories, where a commit's id is the digest; this file knows what has to arrive.
"""

import argparse
import errno
import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from tqdm import tqdm

from . import checkpoint, commit, registry
from .errors import AestheticError, DownloadError

__all__ = ["download_commit", "download_embedding", "download_snapshot", "main"]


@dataclass(frozen=True, kw_only=True)
class _Remote:
    """Where a file comes from, as its server describes it.

    size:         None for aesthetics, which are too small to go on with where they stopped.
    token_wanted: whether it is the hub itself; its storage servers get no token.
    git_sha1:     of the blob, for small files on the hub.
    """

    url: str
    size: int | None = None
    token_wanted: bool = False
    git_sha1: str | None = None


def download_snapshot(name: str, source: checkpoint.Source, weights: Path) -> None:
    """Fetch every file of `source`, which is on the hub, that is not yet in `weights`/`name`.

    Raises DownloadError if a file can't be had, is not the right one, or doesn't fit on the disk.
    """
    if source.repo_id is None:
        raise ValueError(f"{name} is on no hub")
    for file_name, file in source.files.items():
        target = weights / name / file_name
        if _is_right(target, file):
            continue
        with _explained(f"{name}/{file_name}"):
            url = hf_hub_url(source.repo_id, file_name, revision=source.revision)
            facts = get_hf_file_metadata(url)
            remote = _Remote(
                url=facts.location,
                size=facts.size,
                token_wanted=facts.location == url,
                git_sha1=facts.etag,
            )
            if not _is_right(target, file, remote):
                _fetch(remote, file, target, weights / ".partial")


def download_commit(name: str, source: checkpoint.Source, weights: Path) -> None:
    """Fetch the files of `source`, a commit of a git repository, unless all are in `weights`/`name` as they came.

    What they were then is noted beside them, as sha256sum writes it, in a file named after the commit: nothing but the
    commit's id is known of them before. Raises DownloadError.
    """
    if source.git is None:
        raise ValueError(f"{name} is in no git repository")
    folder, partial = weights / name, weights / ".partial"
    note = folder / f"{source.revision}.sha256"
    if not checkpoint.missing(folder, source) and note.is_file():
        sha256s = {file_name: _sha256(folder / file_name) for file_name in source.files}
        if note.read_bytes() == _sums(sha256s):
            return
    with _explained(name):
        partial.mkdir(parents=True, exist_ok=True)
        files = commit.read(source.git, source.revision, source.files, partial)
        for file_name, data in files.items():
            _place(data, folder / file_name, partial)
        sha256s = {file_name: hashlib.sha256(data).hexdigest() for file_name, data in files.items()}
        _place(_sums(sha256s), note, partial)  # last: what is noted is there


def download_embedding(name: str, entries: registry.Registry, partial: Path) -> None:
    """Fetch the aesthetic `name` unless it is there or comes with the checkout. Raises DownloadError."""
    entry, target = entries.entries[name], entries.path(name)
    file = checkpoint.File(sha256=entry.sha256)
    if entry.url is not None and not _is_right(target, file):
        with _explained(name):
            _fetch(_Remote(url=entry.url), file, target, partial)


def main(arguments: list[str] | None = None) -> int:
    """The command script/download-weights; returns its exit status."""
    parser = argparse.ArgumentParser(prog="script/download-weights", description="Fetch and verify the weights.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of weights/manifest.json; blank: all")
    names = parser.parse_args(arguments).names
    home = checkpoint.home()
    try:
        manifest = checkpoint.read_manifest(home / "weights")
        entries = registry.Registry(home / "embeddings")
        unknown = [name for name in names if name not in manifest]
        if unknown:
            raise DownloadError(f"there is no snapshot {unknown[0]!r}; there are {', '.join(manifest)}")
        wanted = {name: manifest[name] for name in names or manifest}
        _download({name: source for name, source in wanted.items() if source.repo_id is not None}, entries, home)
        _verify({name: source for name, source in wanted.items() if source.bundled}, entries, home)
        _download_commits({name: source for name, source in wanted.items() if source.git is not None}, home)
    except AestheticError as error:
        print(f"download-weights: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("download-weights: stopped; run it again and it goes on from here", file=sys.stderr)
        return 130
    print("Everything is there, and every digest is right.")
    return 0


def _download(sources: Mapping[str, checkpoint.Source], entries: registry.Registry, home: Path) -> None:
    """Fetch snapshots from the hub and, unless there is none to fetch, the aesthetics."""
    for name, source in sources.items():
        _announce(name, source, home)
        download_snapshot(name, source, home / "weights")
    if sources:
        print(f"aesthetics -> {entries.folder}")
        for name in entries.entries:
            download_embedding(name, entries, home / "weights" / ".partial")


def _download_commits(sources: Mapping[str, checkpoint.Source], home: Path) -> None:
    """Fetch what is in git repositories: after all else, which needs no git."""
    for name, source in sources.items():
        _announce(name, source, home)
        download_commit(name, source, home / "weights")


def _announce(name: str, source: checkpoint.Source, home: Path) -> None:
    print(f"{name} ({source.license}) -> {home / 'weights' / name}")


def _verify(sources: Mapping[str, checkpoint.Source], entries: registry.Registry, home: Path) -> None:
    """Raise DownloadError unless what comes with the checkout is right: at the end, for it must stop no download."""
    if not sources:
        return
    print(f"{', '.join(sources)}, with aesthetics of its own: comes with the checkout")
    files = {
        home / "weights" / name / file_name: file
        for name, source in sources.items()
        for file_name, file in source.files.items()
    }
    for name, entry in entries.entries.items():
        if entry.url is None:
            files[entries.path(name)] = checkpoint.File(sha256=entry.sha256)
    wrong = [path for path, file in files.items() if not _is_right(path, file)]
    if wrong:
        raise DownloadError(
            f"{wrong[0]} and {len(wrong) - 1} other files are missing or have the wrong sha256: "
            f"{checkpoint.INCOMPLETE.format('weights embeddings')}"
        )


def _fetch(remote: _Remote, file: checkpoint.File, target: Path, partial: Path) -> None:
    """Download to a file named by the digest that is wanted, verify it, and move it to `target`."""
    assert file.sha256 is not None, "only what is in a git repository has none"
    unfinished = partial / file.sha256
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("ab") as stream:
        if remote.size is None or stream.tell() > remote.size:
            stream.seek(0)
            stream.truncate()
        done = stream.tell()
        free = shutil.disk_usage(partial).free
        if remote.size is not None and remote.size - done > free:
            raise OSError(errno.ENOSPC, f"{remote.size - done} bytes are needed, {free} are free")
        if done != remote.size:  # as it is after a stop between the last byte and the move
            http_get(
                remote.url,
                stream,
                resume_size=done,
                headers=build_hf_headers() if remote.token_wanted else None,
                expected_size=remote.size,
                displayed_filename=f"{target.parent.name}/{target.name}",
            )
    if not _is_right(unfinished, file, remote):
        found = _sha256(unfinished)
        unfinished.unlink()
        raise DownloadError(f"its sha256 is {found}, and {file.sha256} was expected; it was thrown away")
    unfinished.replace(target)


def _place(data: bytes, target: Path, partial: Path) -> None:
    """Write `target`, in full or not at all."""
    unfinished = partial / hashlib.sha256(data).hexdigest()
    unfinished.write_bytes(data)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished.replace(target)


def _sums(sha256s: Mapping[str, str]) -> bytes:
    """A line for each file, as sha256sum writes it."""
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sha256s.items()).encode()


def _is_right(path: Path, file: checkpoint.File, remote: _Remote | None = None) -> bool:
    """Whether `path` is there and is `file`: by sha256 or, if that one is unconfirmed, by the hub's git SHA-1."""
    if not path.is_file():
        return False
    if _sha256(path) == file.sha256:
        return True
    if file.confirmed or remote is None:
        return False
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == remote.git_sha1


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            desc=f"verifying {path.name[:30]}",
            leave=False,
            disable=size < 10**8,
        ) as bar,
    ):
        while block := file.read(2**22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what can go wrong on the way into a DownloadError that says what to do."""
    again = "run script/download-weights again: it goes on where it stopped"
    try:
        yield
    except DownloadError as error:
        raise DownloadError(f"{what}: {error}; {again}") from error
    except HfHubHTTPError as error:
        raise DownloadError(f"{what}: the server refused it: {error}") from error
    except httpx2.HTTPError as error:
        raise DownloadError(f"{what}: no connection ({error}); check the network and {again}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DownloadError(f"{what}: the disk is full ({error.strerror}); make room and {again}") from error
        raise DownloadError(f"{what}: {error}; {again}") from error


if __name__ == "__main__":
    sys.exit(main())
