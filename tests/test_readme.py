"""What README and the pages of the rooms say is so."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
from PIL import Image

from aesthetic.cli.main import _parser
from script import schema
from tests.pipeline.families import sdxl
from tests.snapshot import MODEL, ROOT

FOLDERS = ("aesthetic", "embeddings", "script", "weights")
FOUND = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")))
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in FOUND)]
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT[page], re.DOTALL)


def section(page: str, heading: str) -> str:
    return TEXT[page].partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_diffusers_examples_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's and then those of the pipeline's page, which go on with what README's has made."""
    for name in ("weights", "embeddings"):
        (tmp_path / name).symlink_to(home / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    for name in ("photo", "mask"):
        Image.linear_gradient("L").resize((128, 128)).convert("RGB").save(f"{name}.png")
    unet = diffusers.UNet2DConditionModel.from_pretrained(home / "weights" / MODEL / "unet", variant="fp16")
    diffusers.ControlNetModel.from_unet(unet).save_pretrained("your/controlnet")
    sdxl(home).save_pretrained("your/xl")
    found: dict[str, Any] = {}
    [readme], others = python_blocks("README.md"), python_blocks("aesthetic/pipeline/README.md")
    exec(readme.replace("steps=10))", "steps=10), num_inference_steps=3)"), found)  # noqa: S102
    for block in others:
        exec(block.replace("num_inference_steps=20", "num_inference_steps=3"), found)  # noqa: S102
    for name, size in {"image": 512, "redrawn": 128, "inpainted": 512, "controlled": 128, "castle": 128}.items():
        assert found[name].size == (size, size)


def test_an_aesthetic_is_made_as_the_example_says(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    Path("likes").mkdir()
    for color in ("red", "gold"):
        Image.new("RGB", (64, 64), color).save(f"likes/{color}.png")
    found: dict[str, Any] = {}
    [example] = python_blocks("embeddings/README.md")
    exec(example, found)  # noqa: S102
    assert found["aesthetic"].load_aesthetic("mine.safetensors").dim == found["mine"].dim


@pytest.mark.parametrize("page", PAGES)
def test_the_other_examples_are_python(page: str) -> None:
    for block in python_blocks(page):
        compile(block, page, "exec")


def test_the_dozen_inputs_have_their_default_range_and_choices() -> None:
    schemas = schema.openapi_schema()["components"]["schemas"]
    properties = schemas["Input"]["properties"]
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|(.*?)\|.*\|$", section("README.md", "Inputs"), re.MULTILINE)
    inputs = [[cell.strip() for cell in row] for row in rows]
    assert len({name for name, _, _ in inputs}) == 12
    for name, default, limits in inputs:
        field = properties[name]
        expected = field["default"]
        text = expected if isinstance(expected, str) else "blank" if expected is None else json.dumps(expected)
        assert default == text
        if "minimum" in field:
            assert limits == f"{field['minimum']:g} to {field['maximum']:.10g}"
        if named := re.findall(r"`(\w+)`", limits):
            assert named == schemas[name]["enum"]


def test_every_named_aesthetic_is_listed() -> None:
    index = json.loads((ROOT / "embeddings" / "index.json").read_text(encoding="utf-8"))
    assert set(re.findall(r"`(\w+)`", section("embeddings/README.md", "By name"))) >= set(index)


def test_every_flag_of_txt2img_is_named() -> None:
    [commands] = [action for action in _parser()._actions if hasattr(action, "choices") and action.choices]
    flags = commands.choices["txt2img"]._option_string_actions  # type: ignore[index]
    named = set(re.findall(r"`(--[\w-]+)`", section("aesthetic/cli/README.md", "The original's flags")))
    assert named == {flag for flag in flags if flag.startswith("--")} - {"--help"}


def test_every_command_has_its_row() -> None:
    [commands] = [action for action in _parser()._actions if hasattr(action, "choices") and action.choices]
    rows = re.findall(r"^\| `([\w-]+)` \|", TEXT["aesthetic/cli/README.md"], re.MULTILINE)
    assert set(rows) >= set(commands.choices or ())


@pytest.mark.parametrize("page", ["README.md", "aesthetic/README.md"])
def test_every_room_has_its_row(page: str) -> None:
    rooms = {f"aesthetic/{path.parent.name}/" for path in (ROOT / "aesthetic").glob("*/__init__.py")}
    assert set(re.findall(r"^\| \[?`(aesthetic/\w+/)`", TEXT[page], re.MULTILINE)) == rooms


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_it_names_are_there(page: str) -> None:
    for path in re.findall(r"`((?:aesthetic|embeddings|script|tests|weights)/[\w./-]+\.(?:json|py|txt))`", TEXT[page]):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES)
def test_what_it_links_to_is_there(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT[page]):
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """Those that GitHub gives to headings: lower case, hyphens for spaces, no other punctuation."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
