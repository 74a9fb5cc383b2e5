"""Triton's interpreter, without what takes half of its time."""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _patch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch what a module knows of Triton's language once; the interpreter does so in each call of a function."""
    if find_spec("triton") is None:  # torch brings it on Linux only
        return
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set[str]()

    def patch_once(function: Any) -> Any:
        if function.__module__ not in patched:
            patched.add(function.__module__)
            patch(function)
        return SimpleNamespace(restore=lambda: None)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
