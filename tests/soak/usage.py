"""What a server takes (memory, descriptors, threads, bytes on disk), and whether that rises."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy import stats

from tests.serving import Server

BLOCKS = 10


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of all processes of a server; the memory of the GPU is that of all processes on it."""

    memory_bytes: int  # that no other process shares (USS)
    gpu_bytes: int
    descriptors: int
    threads: int
    disk_bytes: int


def usage(server: Server, folders: Iterable[Path]) -> Usage:
    """What the server takes now. folders: those that it may write to."""
    processes = [psutil.Process(server.process.pid)]
    processes += processes[0].children(recursive=True)
    return Usage(
        memory_bytes=sum(one.memory_full_info().uss for one in processes),
        gpu_bytes=_gpu_bytes(),
        descriptors=sum(one.num_fds() for one in processes),
        threads=sum(one.num_threads() for one in processes),
        disk_bytes=sum(size for folder in folders for _, size in tree(folder).values()),
    )


def _gpu_bytes() -> int:
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files below a folder: when each was last written, and its bytes."""
    found = {}
    for path in folder.rglob("*"):
        try:
            state = path.lstat()
        except FileNotFoundError:  # deleted in the meantime
            continue
        if not path.is_dir():
            found[path] = (state.st_mtime_ns, state.st_size)
    return found


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The rise per 1,000 samples, and its 95 % interval."""

    rise: float
    low: float
    high: float


def trend(samples: Sequence[float]) -> Trend:
    """The line through the means of equal blocks of samples (at least 3).

    Neighboring samples are alike, so a line through the samples themselves would get an interval that is too narrow.
    """
    blocks = min(BLOCKS, len(samples))
    size = len(samples) // blocks
    means = np.asarray(samples[-blocks * size :], dtype=float).reshape(blocks, size).mean(axis=1)
    line = stats.linregress(np.arange(blocks), means)
    margin = stats.t.ppf(0.975, blocks - 2) * np.nan_to_num(line.stderr)  # NaN if all are equal
    rise, low, high = (float(value) * 1000 / size for value in (line.slope, line.slope - margin, line.slope + margin))
    return Trend(rise=rise, low=low, high=high)
