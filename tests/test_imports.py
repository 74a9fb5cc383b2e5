"""Imports point downward only, and the heavy libraries stay where models are loaded or run."""

import ast

import pytest

from tests.snapshot import ROOT

LAYERS = [  # from the top; whoever stands in a line may import from the lines below it
    {"predict", "__main__"},
    {"commands.aesthetics"},
    {"commands.sheets", "commands.recipe"},
    {"commands.txt2img", "commands.evaluate", "commands.speed"},
    {"commands.arguments"},
    {"evaluation", "bench"},
    {"stages"},
    {"service", "report"},
    {"targets"},
    {"sample", "output", "download", "stops", "embeds", "shapes", "fast"},
    {"prompt", "registry", "redraw", "graft", "predictor"},
    {"embedding", "pipeline"},
    {"canvas", "climb"},
    {"gradient", "steering", "schedulers", "images", "checkpoint", "results", "lora", "original", "floor"},
    {"graphs", "compiled", "pickled", "device", "archives"},
    {"formats"},
    {"samples", "color"},
    {"cancellation", "ldm"},
    {"request"},
    {"notation"},
    {"errors", "settings", "writing", "__init__", "commands.__init__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = {
    "predict": ROOT / "predict.py",
    **{path.stem: path for path in (ROOT / "aesthetic").glob("*.py")},
    **{f"commands.{path.stem}": path for path in (ROOT / "aesthetic" / "commands").glob("*.py")},
}
HEAVY = {"compel", "diffusers", "peft", "transformers"}
MAY_BE_HEAVY = {"graft", "original", "pipeline", "prompt", "redraw", "sample", "schedulers", "shapes"}


def imports(name: str) -> tuple[set[str], set[str]]:
    """The modules of ours and the top-level names of others that a file imports, anywhere in it."""
    ours: set[str] = set()
    others: set[str] = set()
    package = name.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 0 and not module.startswith("aesthetic"):
                others.add(module.partition(".")[0])
                continue
            parts = [package if node.level == 1 else "", module.removeprefix("aesthetic").removeprefix(".")]
            source = ".".join(filter(None, parts))
            names = {f"{source}.{alias.name}".removeprefix(".") for alias in node.names}
            ours |= {source} if source in FILES else {each if each in FILES else "__init__" for each in names}
    return ours, others


def test_every_file_has_a_place() -> None:
    assert FILES.keys() == RANK.keys()


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_downward(name: str) -> None:
    ours, _ = imports(name)
    assert all(RANK[module] > RANK[name] for module in ours), ours


@pytest.mark.parametrize("name", sorted(FILES))
def test_heavy_libraries_stay_where_they_belong(name: str) -> None:
    _, others = imports(name)
    assert not others & HEAVY or name in MAY_BE_HEAVY
    assert ("cog" in others) == (name == "predict")
    assert ("matplotlib" in others) == (name == "report")


def test_the_idea_needs_torch_and_nothing_else() -> None:
    ours, others = imports("gradient")
    assert ours == set()
    assert others == {"copy", "collections", "dataclasses", "torch"}
