"""Run one input in a process of its own, with limits of memory and time, and tell what came of it.

The process is a fork of this one, which has loaded everything, so that it starts in a few hundredths of a second. It
reports through a pipe; of a process that was killed, its signal tells what happened.
"""

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from aesthetic.errors import AestheticError

from .kind import Bench, Kind

__all__ = ["NO_END", "Outcome", "Runner"]

SECONDS = 10  # of computing, whatever else the machine does
WAITING = 60  # seconds by the clock
NO_END = f"no end after {WAITING} seconds"
MIB = 2**20
MEMORY = 1024 * MIB  # above what an idle child has
ADDRESSES = 2 * MEMORY  # beyond what the parent has mapped: more can't be had, and to ask for it is a fault
LOG = 4000  # bytes of a killed process' log
WATCHED = ("/aesthetic/", "/PIL/", "/pillow_heif/", "/zipfile", "/tarfile.py", "/pickletools.py")  # whose lines count
LAST = "condition"  # the function in which the model starts to work: from here on, watching would only take time
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.utime",
)
SAMPLE = 10  # of so many accepted inputs without new lines, the model draws from one
LONGEST = 5000  # characters of a message


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an input.

    fault:   why it is no refusal that names the input, and no success; "" for those.
    seconds: of computing.
    refusal: the message of the AestheticError; "" without one.
    detail:  a traceback or log, for people.
    mib:     most memory above that of an idle child.
    lines:   of the watched code that ran.
    """

    fault: str = ""
    refusal: str = ""
    detail: str = ""
    seconds: float = 0.0
    mib: float = 0.0
    lines: frozenset[str] = field(default_factory=frozenset)


class Runner:
    """Runs inputs one after another in children of this process."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        """folder: of all temporary files; it is emptied for each input."""
        self._bench, self._folder = bench, folder
        self._idle = self._finish(dict, 0).mib

    def __call__(self, kind: Kind, data: bytes, known: AbstractSet[str] = frozenset()) -> Outcome:
        """What comes of an input.

        known: lines that ran before. Of the inputs that bring no other, the model draws from one in ten.
        """
        is_drawn = zlib.crc32(data) % SAMPLE == 0
        return self._finish(
            lambda: _tried(kind, self._bench, data, self._folder, None if is_drawn else known), self._idle
        )

    def _finish(self, work: Callable[[], dict[str, Any]], idle: float) -> Outcome:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(work, writer, self._folder)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            report = pipe.read()
        _, status, usage = os.wait4(child, 0)
        mib = usage.ru_maxrss / 1024 - idle
        found = json.loads(report) if report else {"fault": _ending(status), "detail": self._log()}
        if not found.get("fault") and mib * MIB > MEMORY and idle:
            found["fault"] = "more than 1 GiB of memory"
        lines = frozenset(found.pop("lines", ()))
        return Outcome(**found, seconds=usage.ru_utime + usage.ru_stime, mib=mib, lines=lines)

    def _log(self) -> str:
        log = self._folder / "log"
        return log.read_text(errors="replace")[-LOG:] if log.exists() else ""


def _work(work: Callable[[], dict[str, Any]], writer: int, folder: Path) -> None:
    """In the child: limit it, work, report, end. Never returns."""
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.dont_write_bytecode, tempfile.tempdir = True, str(folder)
        mapped = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAITING)
        report = json.dumps(work()).encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(report)
    finally:
        os._exit(0)


class _Accepted(BaseException):
    """An input was accepted, and the model need not work."""


def _tried(kind: Kind, bench: Bench, data: bytes, folder: Path, known: AbstractSet[str] | None) -> dict[str, Any]:
    lines, deeds, refusal = set[str](), list[str](), ""
    sys.addaudithook(lambda event, details: _judge(event, details, str(folder), deeds))
    sys.settrace(_tracer(lines, known))
    try:
        kind.run(bench, data, folder)
        fault, detail = "", ""
    except AestheticError as error:
        refusal, detail = str(error), traceback.format_exc()
        fault = _unfit(kind, error)
    except _Accepted:
        fault, detail = "", ""
    except BaseException as error:
        fault, detail = f"{type(error).__name__} at {_place(error)}", traceback.format_exc()
    sys.settrace(None)
    if deeds:
        fault, detail = f"{deeds[0].partition(' ')[0]} outside of the temporary folder", "\n".join(deeds)
    return {"fault": fault, "refusal": refusal, "detail": detail if fault else "", "lines": sorted(lines)}


def _tracer(lines: set[str], known: AbstractSet[str] | None) -> Callable[[FrameType, str, Any], Any]:
    """Collects the watched lines that run. Ends before the model works if all are known; None lets it work."""

    def trace(frame: FrameType, _: str, __: Any) -> Any:
        if frame.f_code.co_name == LAST:
            sys.settrace(None)
            if known is not None and lines <= known:
                raise _Accepted
        return line if _is_watched(frame.f_code.co_filename) else None

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return line

    return trace


@cache
def _is_watched(file: str) -> bool:
    return any(part in file for part in WATCHED)


def _judge(event: str, details: tuple[Any, ...], folder: str, deeds: list[str]) -> None:
    """Note what no input may make the service do. It is called for everything that Python does."""
    if event in NETWORK or event in PROGRAMS:
        deeds.append(f"{event} {details[:2]}")
    is_written = event == "open" and (
        set(str(details[1])) & set("wax+") or (details[2] or 0) & (os.O_WRONLY | os.O_RDWR)
    )
    if (is_written or event in CHANGES) and not isinstance(details[0], int):
        path = os.path.abspath(os.fsdecode(details[0]))  # noqa: PTH100  (Path makes too much of it, in a hook)
        if not path.startswith((f"{folder}/", "/dev/null")):
            deeds.append(f"{event} of {path}")


def _unfit(kind: Kind, error: AestheticError) -> str:
    """Why the message of an error is not good enough; "" if it is."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    if any(isinstance(one, MemoryError) or "allocate" in str(one) for one in chain):
        return f"asks for more than 2 GiB at {_place(chain[-1])}"
    message = str(error)
    if not kind.names(error):
        return f"a message that does not name the input, from {_place(error)}"
    if len(message) > LONGEST or not message.replace("\n", "").isprintable():
        return f"a message that is too long or can't be shown, from {_place(error)}"
    return ""


def _place(error: BaseException) -> str:
    """The last line of this project in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/aesthetic/" in frame.filename] or frames
    return f"{re.sub('.*/aesthetic/', '', ours[-1].filename)}:{ours[-1].lineno}" if ours else "?"


def _ending(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"a process that ended with {os.waitstatus_to_exitcode(status)}"
    killer = signal.Signals(os.WTERMSIG(status))
    slow = {
        signal.SIGPROF: f"more than {SECONDS} seconds of computing",
        signal.SIGALRM: NO_END,
    }
    return slow.get(killer, f"a crash: {killer.name}")
