"""Imports between rooms point downward only, and heavy libraries stay where models are loaded or run."""

import ast
import graphlib

import pytest

from tests.snapshot import ROOT

ROOMS = [  # from the top: a line may import from the lines below it, and from itself without circles
    {"predict", "__main__"},
    {"cli"},
    {"ui"},
    {"benchmark", "evaluation"},
    {"cluster"},
    {"service"},
    {"pipeline"},
    {"images", "acceleration"},
    {"models", "request"},
    {"embeddings", "parsing", "personalizer"},
    {"settings", "writing"},
    {"gradient", "cancellation", "errors", ""},
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
PACKAGE = ROOT / "aesthetic"
FILES = {
    "predict": ROOT / "predict.py",
    **{".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")},
}
HEAVY = {"diffusers", "transformers"}
MAY_BE_HEAVY = {"benchmark", "models", "pipeline"}


def room(name: str) -> str:
    return name.partition(".")[0].removesuffix("__init__")


def imports(name: str) -> tuple[set[str], set[str]]:
    """The modules of ours and the top-level names of others that a file imports, anywhere in it."""
    ours: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = ["aesthetic", *name.split(".")][: -node.level] if node.level else []
            source = ".".join([*parts, *filter(None, [node.module])])
            if source.partition(".")[0] != "aesthetic":
                others.add(source.partition(".")[0])
                continue
            for alias in node.names:
                module = f"{source}.{alias.name}".removeprefix("aesthetic.")
                ours.add(module if module in FILES else source.removeprefix("aesthetic").removeprefix("."))
    return ours, others


def test_every_room_has_a_place() -> None:
    assert {room(name) for name in FILES} == RANK.keys()


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"__init__"}))  # the public API, imported on first use
def test_imports_point_downward(name: str) -> None:
    ours, _ = imports(name)
    upward = {module for module in ours if RANK[room(module)] <= RANK[room(name)] and room(module) != room(name)}
    assert not upward


def test_modules_of_a_room_import_one_another_without_circles() -> None:
    graphlib.TopologicalSorter({name: imports(name)[0] for name in FILES}).prepare()


@pytest.mark.parametrize("name", sorted(FILES))
def test_heavy_libraries_stay_where_they_belong(name: str) -> None:
    _, others = imports(name)
    assert not others & HEAVY or room(name) in MAY_BE_HEAVY
    assert "peft" not in others  # only tests need it
    assert ("cog" in others) == (name == "predict")
    assert ("matplotlib" in others) == (name == "evaluation.report")
    assert not others & {"fastapi", "pyarrow", "ray"} or room(name) == "cluster"
    assert "gradio" not in others or room(name) == "ui"
    assert "triton" not in others or name.endswith("kernels")  # which a CPU does not import


def test_images_need_no_torch() -> None:
    assert all("torch" not in imports(name)[1] for name in FILES if room(name) == "images")


def test_the_idea_needs_torch_and_nothing_else() -> None:
    ours, others = imports("gradient")
    assert ours == set()
    assert others == {"collections", "dataclasses", "torch"}
