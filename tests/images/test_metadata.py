"""Image files with the recipe that made them."""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import piexif
import piexif.helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, PngImagePlugin

from aesthetic.errors import AestheticError, ImageError, RequestError
from aesthetic.images import metadata
from aesthetic.images.metadata import Recipe
from aesthetic.request import FORMATS, MAX_SEED, SCHEDULERS, Request

CASES = Path(__file__).parent.parent / "cases"
RED = Image.new("RGB", (4, 4), "red")


def recipe(request: Request, **aesthetic: str) -> Recipe:
    model = {"name": "tiny", "revision": "local", "precision": "float32"}
    return replace(Recipe.of(request, model=model, aesthetic=aesthetic, files={}), versions={"torch": "2.13.0"})


def written(path: Path, content: Recipe) -> Path:
    metadata.write(path, RED, content)
    return path


def forged(path: Path, text: str) -> Path:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("aesthetic", text)
    RED.save(path, pnginfo=texts)
    return path


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=50)


@given(
    prompt=TEXT,
    negative_prompt=TEXT,
    seed=st.integers(0, MAX_SEED),
    scheduler=st.sampled_from(list(SCHEDULERS)),
    output_format=st.sampled_from(FORMATS),
)
def test_a_recipe_is_read_back(tmp_path_factory: pytest.TempPathFactory, **inputs: Any) -> None:
    request = Request(**inputs)
    content = recipe(request)
    path = written(tmp_path_factory.mktemp("image") / f"a.{request.output_format}", content)
    assert metadata.read_recipe(path) == content
    assert metadata.read_recipe(path).rebuild() == request


@pytest.mark.parametrize("sigma", [0, 5, 200])
def test_a_png_keeps_every_pixel_and_is_hardly_larger_than_pillows_own(tmp_path: Path, sigma: float) -> None:
    shade = Image.linear_gradient("L").resize((192, 128))
    channels = [ImageChops.add(shade, Image.effect_noise(shade.size, sigma)) for _ in range(3)]
    image = Image.merge("RGB", channels)
    metadata.write(tmp_path / "a.png", image, recipe(Request(seed=1)))
    with Image.open(tmp_path / "a.png") as written_image:
        assert written_image.tobytes() == image.tobytes()
    image.save(tmp_path / "b.png")
    ours, theirs = ((tmp_path / name).stat().st_size for name in ("a.png", "b.png"))
    assert ours < 1.15 * theirs + 2000  # the recipe, too


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
@pytest.mark.parametrize("prompts", [("😀" * 2000, "é" * 2000), ("a castle", "")])
def test_other_formats_have_the_web_uis_text(tmp_path: Path, suffix: str, prompts: tuple[str, str]) -> None:
    """The web UIs read Exif with piexif."""
    request = Request(prompt=prompts[0], negative_prompt=prompts[1], seed=1, output_format=suffix)
    with Image.open(written(tmp_path / f"a.{suffix}", recipe(request))) as image:
        assert image.format == {"webp": "WEBP", "jpg": "JPEG"}[suffix]
        exif = image.info["exif"]
    tags = piexif.load(exif)
    with Image.open(written(tmp_path / "a.png", recipe(replace(request, output_format="png")))) as image:
        assert piexif.helper.UserComment.load(tags["Exif"][piexif.ExifIFD.UserComment]) == image.info["parameters"]
    assert json.loads(tags["0th"][piexif.ImageIFD.ImageDescription])["request"]["prompt"] == prompts[0]
    assert exif.removeprefix(b"Exif\0\0").startswith(b"MM")  # exiv2 decodes the comment in the byte order of the block
    assert metadata.read_recipe(tmp_path / f"a.{suffix}").rebuild() == request


def test_a_file_with_a_comment_of_the_type_byte_is_read_back() -> None:
    """Written before the comment had the type that Exif asks for."""
    request = metadata.read_recipe(CASES / "exif_usercomment_of_type_byte.jpg").rebuild()
    assert (request.prompt, request.negative_prompt, request.seed) == ("a castle by night", "fog", 1)


def test_a_higher_quality_is_larger(tmp_path: Path) -> None:
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    for suffix in ("webp", "jpg"):
        sizes = []
        for quality in (10, 90):
            path = tmp_path / f"{quality}.{suffix}"
            metadata.write(path, noise, recipe(Request(seed=1, output_format=suffix, output_quality=quality)))
            sizes.append(path.stat().st_size)
        assert sizes[0] < sizes[1]


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, recipe(Request(seed=1))) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


def test_parameters_are_as_the_web_uis_write_them(tmp_path: Path) -> None:
    request = Request(
        prompt="a cat,\nin Köln",
        negative_prompt="a dog",
        seed=5,
        scheduler="DDIM",
        ddim_eta=0.5,
        prompt_strength=0.6,
        lora_scale=0.7,
        aesthetic_steps=3,
        aesthetic_weight=0.4,
        aesthetic_slerp=True,
        aesthetic_text="bright, blue",
        aesthetic_text_angle=0.3,
        aesthetic_text_negative=True,
    )
    content = recipe(request, name="fantasy", source="name", sha256="abc")
    content = replace(content, files={"image": "def", "lora": "012"}, versions={"torch": "2", "diffusers": "3"})
    with Image.open(written(tmp_path / "a.png", content)) as image:
        assert image.info["parameters"] == (
            "a cat,\nin Köln\n"
            "Negative prompt: a dog\n"
            "Steps: 50, Sampler: DDIM, CFG scale: 7.5, Seed: 5, Size: 512x512, Model: tiny, Model revision: local, "
            "Eta: 0.5, Denoising strength: 0.6, LoRA sha256: 012, LoRA scale: 0.7, "
            "Aesthetic embedding: fantasy, Aesthetic sha256: abc, Aesthetic steps: 3, Aesthetic LR: 0.0001, "
            'Aesthetic weight: 0.4, Aesthetic slerp: True, Aesthetic text: "bright, blue", Aesthetic text scale: 0.3, '
            'Aesthetic text negative: True, Version: "torch 2, diffusers 3"'
        )


def test_parameters_leave_out_what_was_not_used(tmp_path: Path) -> None:
    with Image.open(written(tmp_path / "a.png", recipe(Request(prompt="a cat", seed=5, height=256)))) as image:
        assert image.info["parameters"] == (
            "a cat\nSteps: 50, Sampler: PLMS, CFG scale: 7.5, Seed: 5, Size: 512x256, Model: tiny, "
            "Model revision: local, Version: torch 2.13.0"
        )


def test_every_scheduler_has_its_name_in_the_web_uis() -> None:
    names = "PLMS", "DDIM", "DPM++ 2M", "Euler", "Euler a", "LMS", "Heun", "DPM++ 2M Karras"
    assert tuple(scheduler.web_ui_name for scheduler in SCHEDULERS.values()) == names


def test_a_recipe_has_the_digests_of_files_but_not_their_names(tmp_path: Path) -> None:
    request = Request(seed=1, aesthetic_embedding_file=tmp_path / "secret.pt")
    (tmp_path / "secret.pt").write_bytes(b"an aesthetic")
    sha256 = hashlib.sha256(b"an aesthetic").hexdigest()
    path = written(tmp_path / "a.png", recipe(request, name="abc", source="file", sha256=sha256))
    assert b"secret" not in path.read_bytes()
    found = metadata.read_recipe(path)
    assert found.rebuild(tmp_path / "secret.pt") == request
    with pytest.raises(RequestError, match=f"came from file, sha256 {sha256}: give the file"):
        found.rebuild()
    (tmp_path / "other.pt").write_bytes(b"another")
    with pytest.raises(RequestError, match=f"and the image was drawn with {sha256}"):
        found.rebuild(tmp_path / "other.pt")


def test_an_image_without_a_recipe_is_refused(tmp_path: Path) -> None:
    RED.save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("text")
    for name in ("plain.png", "text.png"):
        with pytest.raises(ImageError, match=f"{name} has no recipe"):
            metadata.read_recipe(tmp_path / name)
    with pytest.raises(ImageError, match="there is no file"):
        metadata.read_recipe(tmp_path / "nothing.png")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
FACTS = ("request", "model", "aesthetic", "versions")


@given(st.dictionaries(st.sampled_from(FACTS), JSON) | JSON)
def test_a_forged_recipe_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = forged(tmp_path_factory.mktemp("forged") / "a.png", json.dumps(content))
    with suppress(AestheticError):
        metadata.read_recipe(path).rebuild()


def test_a_tampered_request_is_refused(tmp_path: Path) -> None:
    facts = {"model": {"name": "x", "revision": "x", "precision": "x"}, "aesthetic": {}, "versions": {}}
    path = forged(tmp_path / "a.png", json.dumps({**facts, "request": {}, "model": {"name": "x", "precision": "x"}}))
    with pytest.raises(ImageError, match=r"a\.png has no recipe"):
        metadata.read_recipe(path)
    path = forged(tmp_path / "a.png", json.dumps({**facts, "request": {"width": 10**9}}))
    with pytest.raises(RequestError, match="width must be one of"):
        metadata.read_recipe(path).rebuild()
    path = forged(tmp_path / "a.png", json.dumps({**facts, "request": {"evil": 1}}))
    with pytest.raises(RequestError, match="not one of this version's"):
        metadata.read_recipe(path).rebuild()
    for several in ({"num_outputs": 8}, {"aesthetic_sweep": "0,2"}):
        path = forged(tmp_path / "a.png", json.dumps({**facts, "request": {"seed": 1, **several}}))
        with pytest.raises(RequestError, match="of more than one image"):
            metadata.read_recipe(path).settings()
    path = forged(
        tmp_path / "a.png", json.dumps({**facts, "aesthetic": {"name": "a", "source": "evil", "sha256": "b"}})
    )
    with pytest.raises(ImageError, match="has no recipe"):
        metadata.read_recipe(path)
    path = forged(tmp_path / "a.png", json.dumps({**facts, "request": {"seed": None}}))
    with pytest.raises(RequestError, match="the recipe names no seed"):
        metadata.read_recipe(path).rebuild()
    facts["model"]["name"] = "\x1b[31m"
    path = forged(tmp_path / "a.png", json.dumps({**facts, "request": {}}))
    with pytest.raises(ImageError, match="has no recipe"):
        metadata.read_recipe(path)
    with pytest.raises(ImageError, match="has no recipe"):
        metadata.read_recipe(forged(tmp_path / "a.png", "[" * 100_000))
