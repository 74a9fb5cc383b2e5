"""The page on a port of this machine, with nothing from or to the network."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # which gradio reads when it is imported

import gradio as gr

from ..images.user_images import UPLOAD
from ..request import Request
from ..service import Service
from .examples import HERE, OPENING
from .page import CSS, Page

__all__ = ["launched", "serve"]


def serve(service: Service, check: Callable[[Request], None], host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    opening = OPENING if service.model.snapshot.bundled else {}
    with launched(service, check, opening, server_name=host, server_port=port) as address:
        print(address, flush=True)
        signal.pause()


@contextmanager
def launched(
    service: Service, check: Callable[[Request], None], opening: Mapping[str, Any], **place: Any
) -> Iterator[str]:
    """The address of the page, which is served until the end; then all of its files are removed.

    check:   raises AestheticError for a request that can't be drawn, before it waits for its turn.
    opening: what the form holds at first, where that is not a field's default.
    """
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="aesthetic-") as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        gr.set_static_paths([HERE, service.registry.folder / "thumbnails"])
        blocks = Page(service, check, opening).blocks
        private: dict[str, Any] = {"share": False, "ssr_mode": False, "mcp_server": False, "run_history": False}
        limit = int(UPLOAD.total_bytes)
        shown: dict[str, Any] = {"css": CSS, "footer_links": [], "quiet": True}
        try:
            yield blocks.launch(**place, **private, **shown, max_file_size=limit, prevent_thread_lock=True)[1]
        finally:
            blocks.close(verbose=False)
            tempfile.tempdir = former
