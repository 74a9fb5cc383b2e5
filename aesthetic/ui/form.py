"""The form: a component for each field of Request, and the Request of what the browser sends."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ..images.user_images import UPLOAD, read_mask
from ..request import FIELDS, SOURCES, Request, base_type

__all__ = ["component", "culprit", "request"]


def component(name: str, value: Any = None) -> Any:
    """What shows a field, with its default unless another value is given."""
    spec = FIELDS[name]
    kind, limits, label = base_type(spec), spec.metadata, name.replace("_", " ").capitalize()
    if kind is Path:
        return gr.File(label=f"{label}: {limits['help']}", height=120)
    shown = {"label": label, "info": limits["help"], "value": spec.default if value is None else value}
    if "choices" in limits:
        return gr.Dropdown(list(limits["choices"]), **shown)
    if kind is int and spec.default is not None:
        return gr.Slider(limits["ge"], limits["le"], step=1, **shown)
    return {bool: gr.Checkbox, str: gr.Textbox, int: gr.Number, float: gr.Number}[kind](**shown)


def request(raw: Mapping[str, Any], aesthetic: Mapping[str, Any], editor: Any, folder: Path, **own: Any) -> Request:
    """The request of the form's raw values. Raises RequestError or ImageError.

    aesthetic: the input for what was chosen in the gallery, which counts unless the form names another source.
    editor:    the bytes of an image and of the layer painted over it, which become files in `folder`; or None.
    """
    values = {name: _value(name, value) for name, value in raw.items()}
    if not any(values.get(name) for name in SOURCES):
        values |= aesthetic
    return Request(**values | _painted(editor, folder) | own)


def _value(name: str, raw: Any) -> Any:
    if base_type(FIELDS[name]) is Path and isinstance(raw, dict):
        return Path(raw["path"])
    return None if raw == "" and FIELDS[name].default is None else raw


def _painted(editor: Any, folder: Path) -> dict[str, Path]:
    """The inputs image and mask; a layer without paint is no mask."""
    files = {}
    if editor and editor.background:
        for name, data in (("image", editor.background), ("mask", next(filter(None, editor.layers), None))):
            if data:
                files[name] = folder / name
                files[name].write_bytes(data)
        if "mask" in files and not read_mask(files["mask"], UPLOAD, label="the file").image.getchannel("A").getbbox():
            del files["mask"]
    return files


def culprit(message: str) -> str | None:
    """The field that an error's message names first."""
    found = re.search(rf"\b({'|'.join(sorted(FIELDS, key=len, reverse=True))})\b", message)
    return found[1] if found else None
