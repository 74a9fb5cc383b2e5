"""What the README says is so."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
from PIL import Image

from aesthetic.cli.main import _parser
from script import schema
from tests.snapshot import MODEL, ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_diffusers_examples_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("weights", "embeddings"):
        (tmp_path / name).symlink_to(home / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    for name in ("picture", "mask"):
        Image.linear_gradient("L").resize((128, 128)).convert("RGB").save(f"{name}.png")
    unet = diffusers.UNet2DConditionModel.from_pretrained(home / "weights" / MODEL / "unet", variant="fp16")
    diffusers.ControlNetModel.from_unet(unet).save_pretrained("your/controlnet")
    found: dict[str, Any] = {}
    for example in BLOCKS:
        if "diffusers" in example:
            exec(example.replace("num_inference_steps=20", "num_inference_steps=3"), found)  # noqa: S102
    for name, size in {"image": 512, "redrawn": 128, "mended": 512, "drawn": 128}.items():
        assert found[name].size == (size, size)


def test_the_other_examples_are_python() -> None:
    for block in BLOCKS:
        compile(block, "README.md", "exec")


def test_the_table_has_every_input_with_its_default_and_choices() -> None:
    schemas = schema.openapi_schema()["components"]["schemas"]
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|(.*?)\|.*\|$", TEXT, re.MULTILINE)
    inputs = [[cell.strip() for cell in row] for row in rows if row[0] in schemas["Input"]["properties"]]
    assert [name for name, _, _ in inputs] == list(schemas["Input"]["properties"])
    for name, default, limits in inputs:
        field = schemas["Input"]["properties"][name]
        expected = field["default"]
        text = expected if isinstance(expected, str) else "blank" if expected is None else json.dumps(expected)
        assert default == text
        if "minimum" in field:
            assert limits == f"{field['minimum']:g} to {field['maximum']:.10g}"
        if field.get("allOf") and name not in ("width", "height"):
            assert re.findall(r"`(\w+)`", limits) == schemas[name]["enum"]


def test_every_flag_of_txt2img_is_named() -> None:
    [commands] = [action for action in _parser()._actions if hasattr(action, "choices") and action.choices]
    flags = commands.choices["txt2img"]._option_string_actions  # type: ignore[index]
    named = set(re.findall(r"`(--[\w-]+)`", TEXT))
    assert named == {flag for flag in flags if flag.startswith("--")} - {"--help"}


def test_every_room_has_its_line() -> None:
    rooms = {f"aesthetic/{path.parent.name}/" for path in (ROOT / "aesthetic").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(aesthetic/\w+/)` \|", TEXT, re.MULTILINE)) == rooms


def test_what_it_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / target.partition("#")[0]).exists()
