"""Two servers of two users on one machine, which share its temporary folder and draw at once."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from predict import COGLET
from tests.serving import Server, started
from tests.soak.client import Client, setup_error
from tests.soak.report import Finding
from tests.soak.scene import refusal
from tests.soak.usage import tree

PART = "two servers"
OTHER = 65534  # the second user, if this one is root; it may read everything, since Python may lie in root's home
AS_OTHER = (
    *("setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
# Cog's folder of its own, as systemd's PrivateTmp=yes and containers give it.
WITH_OWN_COGLET = ("unshare", "--mount", "sh", "-c", 'mount --bind "$HOME" /tmp/coglet && exec "$@"', "sh")
DRAWN = 10


def soak(fixed: dict[str, Any], expected: bytes, shared: Path) -> Iterator[Finding]:
    """shared: an empty folder, which becomes their /tmp."""
    shared.chmod(0o1777)
    COGLET.parent.mkdir(exist_ok=True)
    why_one = refusal(*WITH_OWN_COGLET, *AS_OTHER, "true", HOME=str(shared))
    with ExitStack() as stack:
        servers = [stack.enter_context(_start(shared))]
        Client(servers[0].address, fixed).fixed_file()  # from here on, /tmp/coglet is this user's
        if not why_one:
            yield _refused(shared)
        servers.append(stack.enter_context(_start(shared, *(() if why_one else WITH_OWN_COGLET + AS_OTHER))))
        who = f"one user ({why_one})" if why_one else f"users 0 and {OTHER}, each with /tmp/coglet of its own"
        yield Finding(part=PART, what="started", facts={"measured": who}, holds=True)
        yield from _drawn_at_once(servers, fixed, expected)
        yield from _own_files(servers, fixed, shared)


def _start(shared: Path, *prefix: str) -> AbstractContextManager[Server]:
    home = tempfile.mkdtemp(prefix="home-", dir=shared)
    if prefix:
        os.chown(home, OTHER, OTHER)
    return started(prefix=prefix, variables={"TMPDIR": str(shared), "HOME": home})


def _refused(shared: Path) -> Finding:
    """Cog's folder is the first user's, and every prediction of the second would fail: its setup says so."""
    try:
        with _start(shared, *AS_OTHER):
            message = "starts"
    except RuntimeError as error:
        message = setup_error(error)
    what = "second user's server, with the first's /tmp/coglet"
    return Finding(part=PART, what=what, facts={"measured": message}, holds="SettingError" in message)


def _drawn_at_once(servers: list[Server], fixed: dict[str, Any], expected: bytes) -> Iterator[Finding]:
    with ThreadPoolExecutor() as pool:
        same = list(pool.map(lambda server: _same(server, fixed, expected), servers))
    measured = ", ".join(f"{count} of {DRAWN}" for count in same)
    yield Finding(part=PART, what="same bytes as alone, drawing at once", facts={"measured": measured},
        holds=all(count == DRAWN for count in same))  # fmt: skip


def _same(server: Server, fixed: dict[str, Any], expected: bytes) -> int:
    client = Client(server.address, fixed)
    return sum(client.fixed_file() == expected for _ in range(DRAWN))


def _own_files(servers: list[Server], fixed: dict[str, Any], shared: Path) -> Iterator[Finding]:
    """Each draws in turn; the top folders in which files then changed are its own."""
    own = []
    for server in servers:
        before = tree(shared).items()
        Client(server.address, fixed).fixed_file()
        own.append({path.relative_to(shared).parts[0] for path, _ in before ^ tree(shared).items()})
    holds = all(own) and not set.intersection(*own)
    yield Finding(part=PART, what="folders that each writes to", facts={"measured": f"{own[0]}, {own[1]}"}, holds=holds)
