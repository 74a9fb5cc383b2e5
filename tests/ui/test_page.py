"""The page without a browser: its form, what it needs, and what is left of it."""

import importlib.util
import re
import urllib.request
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

from aesthetic.cli.main import main
from aesthetic.errors import ImageError, RequestError
from aesthetic.request import FIELDS
from aesthetic.service import Service
from tests.snapshot import ROOT

UI = importlib.util.find_spec("gradio") is not None
needs_gradio = pytest.mark.skipif(not UI, reason="gradio is not installed: requirements-ui.txt")
pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own
if UI:
    from aesthetic.ui import form, serving
    from aesthetic.ui.examples import OPENING, STRIP, thumbnail


def pins(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / file).read_text(), re.MULTILINE))


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["ui"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "script/ui" in line
    assert "requirements-ui.txt" in line


def test_its_pins_agree_with_those_of_the_service() -> None:
    own = pins("requirements-ui.txt")
    for file in ("requirements.txt", "requirements-evaluate.txt", "requirements-dev.txt"):
        assert not {name for name, pin in pins(file).items() if own.get(name, pin) != pin}


@needs_gradio
def test_gradio_needs_nothing_else_and_only_pillow_is_beyond_its_bounds() -> None:
    """Once gradio allows the Pillow of requirements.txt, --no-deps can go, and the package gets an extra."""
    pinned = {name.lower().replace("_", "-") for file in ("", "-ui") for name in pins(f"requirements{file}.txt")}
    needed = [need for need in map(Requirement, requires("gradio") or []) if not need.marker or need.marker.evaluate()]
    assert {need.name.lower().replace("_", "-") for need in needed} <= pinned
    assert [need.name for need in needed if version(need.name) not in need.specifier] == ["pillow"]


@needs_gradio
def test_the_page_has_every_field_and_leaves_nothing(service: Service) -> None:
    import gradio

    from aesthetic.ui.page import Page

    page = Page(service, lambda _: None, OPENING)
    assert page.fields.keys() == FIELDS.keys() - {"aesthetic_embedding", "image", "mask"}
    values = {
        name: component.value for name, component in page.fields.items() if not isinstance(component, gradio.File)
    }
    asked = form.request(values | {"lora": None}, {"aesthetic_embedding": "night"}, None, aesthetic_sweep=None)
    assert {name: getattr(asked, name) for name in OPENING} == OPENING
    assert not page.blocks.analytics_enabled


@needs_gradio
def test_it_is_served_to_this_machine_and_its_files_are_removed(service: Service) -> None:
    import os

    with serving.launched(service, lambda _: None, {}) as address:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


@needs_gradio
def test_raw_values_become_a_request(tmp_path: Path) -> None:
    named = {"aesthetic_embedding": "night"}
    asked = form.request({"prompt": "", "seed": "7", "aesthetic_until": "", "lora": None}, named, None)
    assert (asked.prompt, asked.seed, asked.aesthetic_until, asked.aesthetic_embedding) == ("", 7, None, "night")
    file = {"path": str(tmp_path / "mine.pt")}
    asked = form.request({"aesthetic_embedding_file": file}, named, None)
    assert (asked.aesthetic_embedding, asked.aesthetic_embedding_file) == (None, tmp_path / "mine.pt")
    with pytest.raises(RequestError, match="seed must be a whole number, not 'many'"):
        form.request({"seed": "many"}, named, None)
    with pytest.raises(RequestError, match="prompt must be text"):
        form.request({"prompt": file}, named, None)


@needs_gradio
def test_only_paint_makes_a_mask(tmp_path: Path) -> None:
    def sent(name: str, image: Image.Image) -> dict[str, Any]:
        image.save(tmp_path / name)
        return {"path": str(tmp_path / name)}

    clear = Image.new("RGBA", (8, 8))
    painted = clear.copy()
    painted.putpixel((3, 3), (255, 255, 255, 255))
    image = sent("image.png", Image.new("RGB", (8, 8)))
    assert form.request({}, {}, {"background": None, "layers": []}).image is None
    asked = form.request({}, {}, {"background": image, "layers": [sent("clear.png", clear)]})
    assert (asked.image, asked.mask) == (tmp_path / "image.png", None)
    asked = form.request({}, {}, {"background": image, "layers": [sent("painted.png", painted)]})
    assert asked.mask == tmp_path / "painted.png"
    (tmp_path / "bad.png").write_bytes(b"%!PS-Adobe")
    with pytest.raises(ImageError, match="not an image of a format that is read"):
        form.request({}, {}, {"background": image, "layers": [{"path": str(tmp_path / "bad.png")}]})


@needs_gradio
@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("prompt_strength 0.1 of 2 num_inference_steps is less than one step", "prompt_strength"),
        ("image: the file is empty", "image"),
        ("the model has no vision tower", None),
    ],
)
def test_an_error_is_put_on_the_field_that_it_names_first(message: str, field: str | None) -> None:
    assert form.culprit(message) == field


@needs_gradio
def test_a_thumbnail_that_was_drawn_here_comes_first(tmp_path: Path) -> None:
    assert Path(thumbnail(tmp_path, "night")).parent.parent.name == "ui"
    assert Path(thumbnail(tmp_path, "nonsense")).stem == "unknown"
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "thumbnails" / "night.webp").touch()
    assert thumbnail(tmp_path, "night") == str(tmp_path / "thumbnails" / "night.webp")
    assert all(Path(path).is_file() for path, _ in STRIP)
