"""The form: a component for each field of Request, and the Request of what the browser sends."""

import re
from collections.abc import Mapping
from contextlib import suppress
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
        gr.Markdown(f"{label}: {limits['help']}")
        return gr.File(show_label=False, height=120, elem_id=name)
    shown = {"elem_id": name, "label": label, "info": limits["help"], "value": spec.default if value is None else value}
    if "choices" in limits:
        return gr.Dropdown(list(limits["choices"]), **shown)
    if spec.default is None:
        return gr.Textbox(**shown)  # the others show None as 0
    if kind is int:
        return gr.Slider(limits["ge"], limits["le"], step=1, **shown)
    return {bool: gr.Checkbox, float: gr.Number, str: gr.Textbox}[kind](**shown)


def request(raw: Mapping[str, Any], **own: Any) -> Request:
    """The request of the form's raw values, with some of our own. Raises RequestError or ImageError.

    Of `raw`, aesthetic_embedding is the input for what was chosen in the gallery, which counts unless the form names
    another source; image is that of the editor, with the layers painted over it.
    """
    values = {name: _value(name, raw[name]) for name in raw if name in FIELDS.keys() - {"aesthetic_embedding", "image"}}
    chosen = {} if any(map(values.get, SOURCES)) else raw.get("aesthetic_embedding", {})
    return Request(**values | chosen | _painted(raw.get("image")) | own)


def _value(name: str, raw: Any) -> Any:
    kind, default = base_type(FIELDS[name]), FIELDS[name].default
    if kind is Path and raw:
        return Path(raw["path"])
    with suppress(ValueError):  # for Request to refuse
        return (kind(raw) if raw else None) if isinstance(raw, str) and default is None else raw
    return raw


def _painted(editor: Any) -> dict[str, Path]:
    """The inputs image and mask; a layer without paint is no mask."""
    if not editor or not editor["background"]:
        return {}
    files = {"image": Path(editor["background"]["path"])}
    for layer in editor["layers"]:
        path = Path(layer["path"])
        if read_mask(path, UPLOAD, label="the mask").image.getchannel("A").getbbox():
            files["mask"] = path
    return files


def culprit(message: str) -> str | None:
    """The field that an error's message names first, which for a mask is the image that it is painted on."""
    found = re.search(rf"\b({'|'.join(sorted(FIELDS, key=len, reverse=True))})\b", message)
    return found[1].replace("mask", "image") if found else None
