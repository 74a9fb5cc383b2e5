"""The package: what it exports, what its wheel holds, and that it works where there is no checkout."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

import aesthetic
from aesthetic.embeddings import embedding
from aesthetic.embeddings.registry import Registry
from aesthetic.errors import CheckpointError, EmbeddingError, ImageError, RequestError
from aesthetic.service import Service
from tests.snapshot import MODEL, ROOT

PUBLIC = [
    "Aesthetic",
    "AestheticError",
    "Request",
    "Service",
    "load_aesthetic",
    "make_aesthetic",
    "mix",
    "personalize",
    "prompt_embeds",
]
PINS = ("requirements.txt", "requirements-cluster.txt", "requirements-evaluate.txt")
SNIPPET = f"""
import os
from diffusers import StableDiffusionPipeline
import aesthetic

assert "/aesthetic/__init__.py" in aesthetic.__file__ and {str(ROOT)!r} not in aesthetic.__file__
pipe = StableDiffusionPipeline.from_pretrained(os.environ["AESTHETIC_HOME"] + "/weights/{MODEL}", variant="fp16")
fantasy = aesthetic.load_aesthetic("fantasy")
embeds = aesthetic.prompt_embeds(pipe, "a castle", fantasy, steps=2, negative_prompt="fog")
pipe(**embeds, num_inference_steps=2, width=128, height=128).images[0].save("castle.png")
"""
ALONE = """
import json, sys
import aesthetic
from aesthetic import settings
from aesthetic.models import checkpoint, manifest
settings.silence_libraries()
weights = settings.home() / "weights"
snapshot = checkpoint.locate(None, weights)
missing = manifest.missing(snapshot.folder, manifest.read_manifest(weights)["demo"])
try:
    aesthetic.load_aesthetic("fantasy")
except aesthetic.AestheticError as error:
    message = str(error)
json.dump([str(settings.home()), snapshot.name, missing, aesthetic.load_aesthetic("ink").dim, message], sys.stdout)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with nothing but the package, beside the requirements that are installed here."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-index", "--target", str(folder), str(wheel))
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments[:1], "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, *arguments[1:]], check=True, timeout=200)


def run(installed: Path, cwd: Path, *arguments: str, **settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "AESTHETIC_HOME"}
    ours = {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    answer = subprocess.run(
        command, cwd=cwd, env=environment | ours | settings, stdout=subprocess.PIPE, text=True, timeout=200, check=True
    )
    return answer.stdout


def test_the_public_names_are_these_and_each_is_there() -> None:
    assert aesthetic.__all__ == PUBLIC
    assert set(PUBLIC) < set(dir(aesthetic))
    for name in PUBLIC:
        assert callable(getattr(aesthetic, name))
    with pytest.raises(AttributeError, match="module 'aesthetic' has no attribute 'nonsense'"):
        _ = aesthetic.nonsense


def test_the_import_and_the_errors_cost_no_torch() -> None:
    probe = "import sys, aesthetic; aesthetic.AestheticError, aesthetic.Request; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


def test_the_package_needs_what_the_image_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    bounds = [Requirement(text) for text in [*project["dependencies"], *chain(*extras.values())]]
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", "\n".join((ROOT / name).read_text() for name in PINS), re.MULTILINE))
    assert all(bound.specifier.contains(pinned[bound.name]) for bound in bounds)
    [imported, *_] = (ROOT / "requirements.txt").read_text().split("\n\n")
    ours = set(re.findall(r"^([\w-]+)==", imported, re.MULTILINE))
    assert {bound.name for bound in bounds} == ours | {"matplotlib", "ray"}


def test_the_wheel_holds_the_code_and_what_is_bundled(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [entry_points] = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert wheel.name.startswith(f"aesthetic_gradients-{aesthetic.__version__}-py3")
    assert "aesthetic = aesthetic.cli.main:main" in entry_points
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "aesthetic").rglob("*.py")}
    assert modules | {"aesthetic/py.typed", "aesthetic/evaluation/prompts.txt"} <= names
    demo = json.loads((ROOT / "weights" / "manifest.json").read_text())["demo"]["files"]
    ours = [entry.file for entry in Registry(ROOT / "embeddings").entries.values() if entry.url is None]
    bundled = {name.removeprefix("aesthetic/bundled/") for name in names if name.startswith("aesthetic/bundled/")}
    assert bundled == {
        *("weights/manifest.json", "embeddings/index.json"),
        *(f"weights/demo/{name}" for name in demo),
        *(f"embeddings/{name}" for name in ours),
    }
    assert {name.partition("/")[0] for name in names} == {
        "aesthetic",
        f"aesthetic_gradients-{aesthetic.__version__}.dist-info",
    }


def test_the_snippet_runs_on_the_installed_package(installed: Path, home: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "-c", SNIPPET, AESTHETIC_HOME=str(home))
    with Image.open(tmp_path / "castle.png") as image:
        assert image.size == (128, 128)


def test_without_a_checkout_bundled_files_are_found_and_downloads_go_to_the_cache(
    installed: Path, tmp_path: Path
) -> None:
    home, name, missing, dim, message = json.loads(run(installed, tmp_path, "-c", ALONE))
    assert home == str(tmp_path / "cache" / "aesthetic-gradients")
    assert (name, missing, dim) == ("demo", [], 256)
    assert message == "the aesthetic fantasy has not been downloaded: run aesthetic download-weights"
    shown = run(installed, tmp_path, str(installed / "bin" / "aesthetic"), "embeddings")
    assert "aesthetic download-weights fetches what is not downloaded." in shown
    shown = run(installed, tmp_path, "-m", "aesthetic", "download-weights", "demo")
    assert "every digest is right" in shown


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    return home


def test_an_aesthetic_is_loaded_by_name_or_path(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = aesthetic.load_aesthetic("fantasy")
    assert named.clip_space == "openai/clip-vit-large-patch14"
    path = at_home / "embeddings" / "fantasy.pt"
    monkeypatch.chdir(path.parent)
    for source in (path, str(path), "fantasy.pt", "./fantasy.pt"):
        assert torch.equal(aesthetic.load_aesthetic(source).vector, named.vector)
    with pytest.raises(RequestError, match="there is no aesthetic 'nonsense'; there are sac_8plus"):
        aesthetic.load_aesthetic("nonsense")
    with pytest.raises(EmbeddingError, match=r"there is no file nonsense\.pt"):
        aesthetic.load_aesthetic("nonsense.pt")


def test_a_mix_is_saved_and_loaded_with_its_clip_space(at_home: Path, tmp_path: Path) -> None:
    fantasy, gloomcore = aesthetic.load_aesthetic("fantasy"), aesthetic.load_aesthetic("gloomcore")
    mixed = aesthetic.mix({fantasy: 0.7, "gloomcore": -0.2})
    expected = 0.7 * fantasy.vector - 0.2 * gloomcore.vector
    torch.testing.assert_close(mixed.vector, expected / expected.norm())
    mixed.save(tmp_path / "mine.safetensors")
    loaded = aesthetic.load_aesthetic(tmp_path / "mine.safetensors")
    torch.testing.assert_close(loaded.vector, mixed.vector)
    assert loaded.clip_space == fantasy.clip_space
    elsewhere = embedding.Aesthetic(vector=fantasy.vector, name="far", sha256="0", clip_space="elsewhere")
    with pytest.raises(EmbeddingError, match=r"can't be mixed: fantasy \(openai/clip.*, far \(elsewhere, 24 dim"):
        aesthetic.mix({fantasy: 1.0, elsewhere: 1.0})
    with pytest.raises(RequestError, match="one aesthetic or more"):
        aesthetic.mix({})
    with pytest.raises(RequestError, match="cancel one another out"):
        aesthetic.mix({fantasy: 0.0})
    with pytest.raises(RequestError, match=r"must be finite, not \[inf\]"):
        aesthetic.mix({fantasy: float("inf")})


def test_an_aesthetic_is_made_from_a_folder_or_from_images(at_home: Path, service: Service, tmp_path: Path) -> None:
    vision = service.model.vision
    assert vision is not None
    images = [Image.effect_noise((40, 50), 60 + i).convert("LA") for i in range(3)]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    made, same = aesthetic.make_aesthetic(tmp_path), aesthetic.make_aesthetic(images, model=vision)
    mean = vision.features([vision.prepare(image.convert("RGB")) for image in images]).mean(dim=0, keepdim=True)
    for found in (made, same):
        torch.testing.assert_close(found.vector, mean / mean.norm())
        assert found.clip_space == vision.clip_space
        assert found.notes["pictures"] == "3"
    assert made.notes["model"] == MODEL
    made.save(tmp_path / "mine.safetensors")
    assert aesthetic.load_aesthetic(tmp_path / "mine.safetensors").notes["model"] == MODEL
    with pytest.raises(ImageError, match="no image was given"):
        aesthetic.make_aesthetic([], model=vision)
    with pytest.raises(ImageError, match="an image can't be used: "):
        aesthetic.make_aesthetic([Image.new("F", (8, 8), 300)], model=vision)
    with pytest.raises(ImageError, match="there is no file nowhere"):
        aesthetic.make_aesthetic("nowhere")
    with pytest.raises(CheckpointError, match="there is no model 'nonsense'"):
        aesthetic.make_aesthetic(images, model="nonsense")
