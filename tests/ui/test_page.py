"""The page without a browser: its form, what it needs, and what is left of it."""

import importlib.util
import re
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import requires, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

from aesthetic.cli.main import main
from aesthetic.errors import ImageError, RequestError
from aesthetic.images.user_images import UPLOAD
from aesthetic.request import FIELDS
from aesthetic.service import Service
from tests.snapshot import ROOT

UI = importlib.util.find_spec("gradio") is not None
needs_gradio = pytest.mark.skipif(not UI, reason="gradio is not installed: requirements-ui.txt")
if UI:
    from aesthetic.ui import form, page


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


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--port=99999", "--port must be 0 to 65535, not 99999"),
        ("--port=-1", "--port must be 0 to 65535, not -1"),
        ("--port={taken}", "--port {taken} of --host 127.0.0.1 can't be used"),
        ("--ckpt=none", "there is no model 'none'"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_is_loaded(
    flag: str, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "aesthetic.service", None)  # so that its import fails
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert main(["ui", flag.format(taken=taken)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert problem.format(taken=taken) in line


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
def test_the_page_has_every_field_and_opens_on_its_own_values(service: Service) -> None:
    opening = page.OPENING | {"aesthetic_embedding": "fantasy"}
    made = page.Page(service, lambda _: None, opening)
    assert made.fields.keys() == FIELDS.keys() - {"mask"}
    asked = form.request({name: component.value for name, component in made.fields.items()}, aesthetic_sweep=None)
    assert {name: getattr(asked, name) for name in opening} == opening
    assert not made.blocks.analytics_enabled


@needs_gradio
def test_it_is_served_to_this_machine_and_its_files_are_removed(service: Service) -> None:
    with page.launched(service, lambda _: None, {}) as address:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
        folder = Path(tempfile.gettempdir())
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


@needs_gradio
def test_no_file_of_the_package_is_served_but_its_images(service: Service) -> None:
    with page.launched(service, lambda _: None, {}) as address:
        files = f"{address}gradio_api/file={page.HERE}"
        for image in ("thumbnails/night.webp", "opening/5.webp"):
            with urllib.request.urlopen(f"{files}/{image}") as answer:
                assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="Forbidden") as refused:
            urllib.request.urlopen(f"{files}/page.py")
        refused.value.close()


@pytest.fixture
def made(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes an aesthetic from several files that are the same image."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "red.png")
    raw = {"files": [{"path": str(tmp_path / "red.png")}] * 2, "choices": []}
    return lambda name: page.Page(service, lambda _: None, {}).make(raw | {"name": name})


@needs_gradio
@pytest.mark.parametrize(
    ("name", "stem"),
    [("../a b", "a b"), ("😀" * 60, "😀" * 40), ("a\0\n\ud800", "a" + "\ufffd" * 3), ("", "mine"), ("..", "mine")],
)
def test_any_name_becomes_that_of_a_file(name: str, stem: str, made: Callable[..., Any]) -> None:
    file = made(name)[-1]["aesthetic_embedding_file"]
    assert file.name == f"{stem}.safetensors"
    assert file.is_file()


@needs_gradio
def test_an_error_about_several_files_does_not_name_their_folder(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aesthetic.ui.page.UPLOAD", replace(UPLOAD, images=1))
    with pytest.raises(ImageError, match="the upload holds more than 1 images"):
        made("mine")


@needs_gradio
def test_raw_values_become_a_request(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"aesthetic_embedding": {"aesthetic_embedding": "night"}, "image": None}
    asked = form.request(raw | {"prompt": "", "seed": "7", "aesthetic_until": "", "lora": None})
    assert (asked.prompt, asked.seed, asked.aesthetic_until, asked.aesthetic_embedding) == ("", 7, None, "night")
    file = {"path": str(tmp_path / "mine.pt")}
    asked = form.request(raw | {"aesthetic_embedding_file": file})
    assert (asked.aesthetic_embedding, asked.aesthetic_embedding_file) == (None, tmp_path / "mine.pt")
    with pytest.raises(RequestError, match="seed must be a whole number, not 'many'"):
        form.request(raw | {"seed": "many"})
    with pytest.raises(RequestError, match="prompt must be text"):
        form.request(raw | {"prompt": file})


@needs_gradio
def test_only_paint_makes_a_mask(tmp_path: Path) -> None:
    def sent(name: str, image: Image.Image) -> dict[str, Any]:
        image.save(tmp_path / name)
        return {"path": str(tmp_path / name)}

    clear = Image.new("RGBA", (8, 8))
    painted = clear.copy()
    painted.putpixel((3, 3), (255, 255, 255, 255))
    image = sent("image.png", Image.new("RGB", (8, 8)))
    assert form.request({"image": {"background": None, "layers": []}}).image is None
    asked = form.request({"image": {"background": image, "layers": [sent("clear.png", clear)]}})
    assert (asked.image, asked.mask) == (tmp_path / "image.png", None)
    asked = form.request({"image": {"background": image, "layers": [sent("painted.png", painted)]}})
    assert asked.mask == tmp_path / "painted.png"
    (tmp_path / "bad.png").write_bytes(b"%!PS-Adobe")
    with pytest.raises(ImageError, match="not an image of a format that is read"):
        form.request({"image": {"background": image, "layers": [{"path": str(tmp_path / "bad.png")}]}})


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
def test_the_image_that_is_looked_at_is_the_one_to_start_from() -> None:
    images = [{"image": {"path": name}, "caption": None} for name in ("first", "second")]
    for index, name in ((1, "second"), (None, "first")):
        editor, _ = page.reuse(SimpleNamespace(value=images, selected_index=index))
        assert editor["background"] == name
    assert page.reuse(SimpleNamespace(value=None, selected_index=None))[0] is None


@needs_gradio
def test_the_slider_shows_the_nearest_of_the_images_that_were_not_blocked() -> None:
    strip = [{"caption": f"{steps} steps towards night"} for steps in (0, 5, 20)]
    shown = [page.nearest(steps, strip)[0].selected_index for steps in (0, 2, 3, 12, 13)]
    assert shown == [0, 0, 1, 1, 2]


@needs_gradio
def test_a_thumbnail_that_was_drawn_here_comes_first(tmp_path: Path) -> None:
    registry: Any = SimpleNamespace(folder=tmp_path)
    assert Path(page.thumbnail(registry, "night")).parent.parent.name == "ui"
    assert Path(page.thumbnail(registry, "nonsense")).stem == "unknown"
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "thumbnails" / "night.webp").touch()
    assert page.thumbnail(registry, "night") == str(tmp_path / "thumbnails" / "night.webp")
    assert all(Path(path).is_file() for path, _ in page.STRIP)
