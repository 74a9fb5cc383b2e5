"""The page on a port of this machine, with nothing from or to the network."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gradio as gr

from ..images.user_images import UPLOAD
from ..request import Request
from ..service import Service
from .page import HERE, Page

__all__ = ["launched"]

CSS = ".gradio-container {max-width: 1200px !important; margin: auto}"
CSS += " .preview {background: var(--background-fill-primary)}"  # over the other images of a gallery
OPTIONS: dict[str, Any] = {"share": False, "ssr_mode": False, "mcp_server": False, "run_history": False, "quiet": True}
OPTIONS |= {"prevent_thread_lock": True, "max_file_size": int(UPLOAD.total_bytes), "footer_links": [], "css": CSS}


@contextmanager
def launched(
    service: Service, check: Callable[[Request], object], opening: Mapping[str, Any], **place: Any
) -> Iterator[str]:
    """The address of the page, which is served until the end; then all of its files are removed.

    check:   raises AestheticError for a request that can't be drawn, before it waits for its turn.
    opening: what the form holds at first, where that is not a field's default.
    place:   server_name and server_port, as gradio calls them.
    """
    with tempfile.TemporaryDirectory(prefix="aesthetic-") as folder:
        tempfile.tempdir = folder
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/gradio"  # a folder of its own: it copies only what lies outside
        gr.set_static_paths([HERE / "opening", HERE / "thumbnails", service.registry.folder / "thumbnails"])
        blocks = Page(service, check, opening).blocks
        try:
            yield blocks.launch(**OPTIONS, **place)[1]
        finally:
            blocks.close(verbose=False)
            tempfile.tempdir = None
