"""The page on a port of this machine, with nothing from or to the network."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # which gradio reads when it is imported

import gradio as gr

from ..images.user_images import UPLOAD
from ..request import Request
from ..service import Service
from .examples import HERE
from .page import CSS, Page

__all__ = ["launched", "serve"]


def serve(service: Service, check: Callable[[Request], None], host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with launched(service, check, host, port) as blocks:
        print(blocks.local_url, flush=True)
        blocks.block_thread()


@contextmanager
def launched(service: Service, check: Callable[[Request], None], host: str, port: int | None) -> Iterator[gr.Blocks]:
    """The page while it is served; all of its files are removed at the end.

    check: raises AestheticError for a request that can't be drawn, before it waits for its turn.
    port:  None takes a free one.
    """
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="aesthetic-") as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        gr.set_static_paths([HERE, service.registry.folder / "thumbnails"])
        blocks = Page(service, check).blocks
        place: dict[str, Any] = {"server_name": host, "server_port": port, "share": False, "ssr_mode": False}
        private: dict[str, Any] = {"mcp_server": False, "run_history": False, "footer_links": [], "quiet": True}
        limit = int(UPLOAD.total_bytes)
        blocks.launch(**place, **private, css=CSS, max_file_size=limit, prevent_thread_lock=True)
        try:
            yield blocks
        finally:
            blocks.close(verbose=False)
            tempfile.tempdir = former
