"""A LoRA has the effect that it has by hand and in diffusers, and leaves nothing behind."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from aesthetic.embeddings.registry import Registry
from aesthetic.errors import CheckpointError, DrawingError, RequestError
from aesthetic.images import metadata
from aesthetic.models import checkpoint, loading
from aesthetic.models.loading import Model
from aesthetic.models.lora import apply_lora
from aesthetic.personalizer import Personalizer
from aesthetic.pipeline import sampling, target
from aesthetic.pipeline.conditioning import condition
from aesthetic.request import Request
from aesthetic.service import Service
from tests import lora
from tests.canceling import cancel
from tests.models import single_file
from tests.original import difference
from tests.snapshot import MODEL, sha256
from tests.test_service import weights

CPU = torch.device("cpu")
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj", "to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def changes(model: Model) -> dict[tuple[str, str], lora.Change]:
    return lora.changes(model)


@pytest.fixture(scope="module")
def file(changes: lora.Changes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layer changed, each with a rank and an alpha of its own."""
    return lora.write(tmp_path_factory.mktemp("lora") / "style.safetensors", changes)


@pytest.fixture
def strong(quick: Request) -> Request:
    return replace(quick, aesthetic_lr=0.01)


@pytest.fixture(autouse=True)
def _unchanged(model: Model) -> Iterator[None]:
    """Every weight, every layer and every flag of the model is what it was before the test."""
    before = {name: weight.clone() for name, weight in weights(model).items()}
    layers, flags = structure(model)
    yield
    after = weights(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert structure(model) == (layers, flags)


def structure(model: Model) -> tuple[list[str], list[bool]]:
    parts = (model.pipeline.unet, model.pipeline.text_encoder, model.encoder)
    layers = [f"{name} {type(module).__module__}" for part in parts for name, module in part.named_modules()]
    return layers, [weight.requires_grad for part in parts for weight in part.parameters()]


def drawn(service: Service, request: Request) -> list[bytes]:
    return [image.tobytes() for image, _ in service.draw(request).images]


def apart(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """The greatest difference of two lists of images, of 255."""
    pairs = [[np.frombuffer(data, np.uint8).astype(int) for data in pair] for pair in zip(one, other, strict=True)]
    return max(int(np.abs(first - second).max()) for first, second in pairs)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("scale", [1, 0.3, 2])
def test_it_equals_weights_merged_by_hand(
    service: Service, strong: Request, changes: lora.Changes, file: Path, scale: float, steps: int
) -> None:
    request = replace(strong, lora=file, lora_scale=scale, aesthetic_steps=steps, negative_prompt="the dog")
    merged = lora.by_hand(service.model, changes, scale)
    with_lora = apply_lora(service.model, file, scale)
    target = service.registry.load("sac_8plus").vector if steps else None
    ours, theirs = (
        condition(one, Personalizer(one.encoder), request, target)[1][-1].conditioning for one in (with_lora, merged)
    )
    for name in ("positive", "negative", "empty"):
        assert difference(getattr(ours, name), getattr(theirs, name)) < 1e-5
    noise = torch.randn(2, 4, 16, 16)
    inputs = (noise, torch.tensor([3, 700]), ours.positive.expand(2, -1, -1))
    with torch.no_grad():
        assert difference(with_lora.pipeline.unet(*inputs).sample, merged.pipeline.unet(*inputs).sample) < 1e-5
    images = drawn(service, request)
    assert apart(images, drawn(Service(merged, service.registry), replace(request, lora=None))) <= 1
    assert apart(images, drawn(service, replace(request, lora=None))) > 20


NAMES: dict[str, Any] = {"kohya": lora.kohya, "peft": lora.peft, "dotted": lora.dotted}


@pytest.mark.parametrize(("layout", "scale"), [("kohya", 1.0), ("kohya", 0.5), ("peft", 0.5), ("dotted", 0.5)])
def test_without_steps_it_is_what_plain_diffusers_draws(
    service: Service, home: Path, quick: Request, tmp_path: Path, layout: str, scale: float
) -> None:
    given = lora.changes(service.model, convolutions=layout == "kohya", alike=True)
    if layout != "kohya":
        given = lora.without_alpha(given)  # which plain diffusers doesn't read in these
    path = lora.write(tmp_path / "style.safetensors", given, names=NAMES[layout])
    plain = StableDiffusionPipeline.from_pretrained(home / "weights" / MODEL, variant="fp16")
    plain.load_lora_weights(path)
    request = replace(quick, aesthetic_steps=0, lora=path, lora_scale=scale, scheduler="PNDM")
    size = {"width": 128, "height": 128, "num_inference_steps": 3}

    def theirs(**options: Any) -> list[bytes]:
        generator = torch.Generator().manual_seed(7)
        return [plain("the cat", generator=generator, **size, **options).images[0].tobytes()]

    ours = drawn(service, request)
    assert apart(ours, theirs(cross_attention_kwargs={"scale": scale})) <= 1
    assert apart(ours, theirs(cross_attention_kwargs={"scale": 0.0})) > 20
    plain.fuse_lora(lora_scale=scale)  # as ours is
    plain.unload_lora_weights()
    found = apply_lora(service.model, path, scale).pipeline
    for part, layer in given:
        merged, fused = (getattr(one, part).get_submodule(layer).weight for one in (found, plain))
        assert difference(merged, fused) < 1e-6
    assert apart(ours, theirs()) <= 1


def test_every_layout_draws_the_same(service: Service, quick: Request, changes: lora.Changes, tmp_path: Path) -> None:
    attention = {place: change for place, change in changes.items() if place[1].endswith(ATTENTION)}
    old = {**NAMES, "old": lora.old}
    for layouts, given in ((NAMES, changes), (old, lora.without_alpha(attention))):
        images = []
        for name, names in layouts.items():
            path = lora.write(tmp_path / f"{name}.safetensors", given, names=names)
            images += drawn(service, replace(quick, lora=path))
        assert len(set(images)) == 1
        assert images != drawn(service, quick)


def test_the_alpha_that_diffusers_notes_is_taken(
    service: Service, quick: Request, changes: lora.Changes, tmp_path: Path
) -> None:
    """As a number; other notes for peft are ignored."""
    plain = lora.without_alpha(changes)
    notes = '{"unet.lora_alpha": 6, "unet.r": 1, "unet.init_lora_weights": "evil", "text_encoder.lora_alpha": 0.5}'
    noted = lora.write(tmp_path / "noted.safetensors", plain, names=lora.peft, notes={"lora_adapter_metadata": notes})
    same = {place: replace(change, alpha=6 if place[0] == "unet" else 0.5) for place, change in plain.items()}
    spelt = lora.write(tmp_path / "spelt.safetensors", same)
    assert drawn(service, replace(quick, lora=noted)) == drawn(service, replace(quick, lora=spelt))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_of_a_file_is_read(
    service: Service, quick: Request, changes: lora.Changes, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = lora.write(tmp_path / "style.safetensors", changes, dtype=dtype)
    rounded = {
        place: replace(change, down=change.down.to(dtype).float(), up=change.up.to(dtype).float())
        for place, change in changes.items()
    }
    same = lora.write(tmp_path / "same.safetensors", rounded)
    assert drawn(service, replace(quick, lora=path)) == drawn(service, replace(quick, lora=same))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_only_changed_weights_are_new(service: Service, changes: lora.Changes, tmp_path: Path, part: str) -> None:
    """Of a part without changes, nothing is."""
    some = dict([(place, change) for place, change in changes.items() if place[0] == part][::3])
    model, found = service.model, apply_lora(service.model, lora.write(tmp_path / "some", some), 1)
    assert (found.pipeline.unet is model.pipeline.unet) == (part != "unet")
    assert (found.encoder is model.encoder) == (part == "unet")
    assert found.pipeline.text_encoder is found.encoder.text_model
    prefix = {"unet": "unet", "text_encoder": "encoder.text_model"}[part]
    before, after = weights(model), weights(found)
    own = {name for name, weight in after.items() if weight.data_ptr() != before[name].data_ptr()}
    assert {name for name in own if name.startswith(prefix)} == {f"{prefix}.{layer}.weight" for _, layer in some}
    changed = {"unet": found.pipeline.unet, "text_encoder": found.encoder}[part]
    assert not any(weight.requires_grad for weight in changed.parameters())


def test_in_half_precision_the_encoder_stays_whole(
    home: Path, changes: lora.Changes, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "precision", lambda _: torch.float16)  # as on a GPU
    half = loading.load(checkpoint.locate(None, home / "weights"), CPU)
    found, merged = apply_lora(half, file, 0.5), lora.by_hand(half, changes, 0.5)
    for part in (found.pipeline.unet, found.pipeline.text_encoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.float16}
    for name, weight in found.encoder.state_dict().items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, merged.encoder.state_dict()[name])
    for name, weight in found.pipeline.text_encoder.state_dict().items():
        assert torch.equal(weight, found.encoder.text_model.state_dict()[name].half())


def test_weights_are_rounded_once_and_keep_their_memory_order(
    home: Path, changes: lora.Changes, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "precision", lambda _: torch.float16)  # as on a GPU
    half = loading.load(checkpoint.locate(None, home / "weights"), CPU)
    half.pipeline.unet.to(memory_format=torch.channels_last)
    own, found, merged = (
        dict(one.pipeline.unet.named_parameters())
        for one in (half, apply_lora(half, file, 0.5), lora.by_hand(half, changes, 0.5))
    )
    assert {name: weight.stride() for name, weight in found.items()} == {
        name: weight.stride() for name, weight in own.items()
    }
    assert not found["conv_in.weight"].is_contiguous()
    apart = sum(int((found[name] != merged[name]).sum()) for name in own)  # rounded in fp32 first, to the other side
    assert apart < 1e-3 * sum(weight.numel() for weight in own.values())


def test_a_scale_of_0_changes_nothing_but_the_file_is_checked(
    service: Service, quick: Request, file: Path, tmp_path: Path
) -> None:
    off = replace(quick, lora=file, lora_scale=0)
    assert drawn(service, off) == drawn(service, quick)
    assert drawn(service, replace(quick, lora_scale=0.5)) == drawn(service, quick)
    (tmp_path / "bad.safetensors").write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="lora: the file is damaged"):
        service.draw(replace(off, lora=tmp_path / "bad.safetensors"))


def test_the_next_image_is_always_that_of_a_fresh_model(
    service: Service, home: Path, strong: Request, changes: lora.Changes, file: Path, tmp_path: Path
) -> None:
    added = replace(strong, lora=file)
    huge = lora.write(tmp_path / "huge", {place: replace(change, alpha=6e4) for place, change in changes.items()})
    fresh = [
        drawn(Service(loading.load(checkpoint.locate(None, home / "weights"), CPU), service.registry), request)
        for request in (strong, added)
    ]
    for _ in range(2):
        assert [drawn(service, request) for request in (strong, added)] == fresh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "is_unsafe", lambda *_: True)
        with pytest.raises(DrawingError):
            service.draw(added)
    with pytest.raises(DrawingError, match=r"lora_scale"):
        service.draw(replace(strong, lora=huge, aesthetic_steps=0))
    random.seed(5)
    canceled = sum(cancel(service, replace(added, aesthetic_steps=50)) for _ in range(15))
    assert canceled > 5
    assert [drawn(service, request) for request in (added, strong)] == fresh[::-1]


def test_aesthetics_are_encoded_by_the_unchanged_clip(
    service: Service, strong: Request, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[Any] = []
    direction = target.target_embedding

    def recording(*inputs: Any) -> Any:
        followed.append(direction(*inputs))
        return followed[-1]

    monkeypatch.setattr(target, "target_embedding", recording)
    for path in (None, file):
        service.draw(replace(strong, aesthetic_text="the dog", lora=path))
    assert torch.equal(followed[0], followed[1])


def test_it_combines_with_others(service: Service, strong: Request, changes: lora.Changes, tmp_path: Path) -> None:
    few = {place: change for place, change in changes.items() if place[0] != "unet" or "mid_block" in place[1]}
    file = lora.write(tmp_path / "few.safetensors", few)
    Image.effect_noise((150, 140), 80).save(tmp_path / "image.png")
    Image.new("L", (150, 140), "white").save(tmp_path / "mask.png")
    redrawn = {"image": tmp_path / "image.png", "mask": tmp_path / "mask.png"}
    ways: list[dict[str, Any]] = [
        {"aesthetic_sweep": "0,1,3"},
        {"aesthetic_mix": "fantasy:1 gloomcore:-0.5", "aesthetic_weight": 0.5},
        {"prompt": "(the cat:1.3) and the dog, " * 12, "long_prompt": True},
        redrawn,
        {"num_outputs": 2, "scheduler": "K_EULER_ANCESTRAL"},
    ]
    for way in ways:
        without, added = (drawn(service, replace(strong, lora=path, **way)) for path in (None, file))
        assert len(without) == len(added)
        assert not set(without) & set(added)
    sweep = replace(strong, lora=file, aesthetic_sweep="0,1,3")
    alone = [drawn(service, replace(strong, lora=file, aesthetic_steps=steps))[0] for steps in (0, 1, 3)]
    assert drawn(service, sweep) == alone
    batches = list(service.draw_batches(sweep, 1))
    assert [image.tobytes() for _, images in batches for image, _ in images] == alone
    batch = drawn(service, replace(strong, lora=file, num_outputs=2))
    assert batch == [drawn(service, replace(strong, lora=file, seed=7 + i))[0] for i in range(2)]


def test_a_model_in_a_single_file_takes_it_too(
    service: Service, home: Path, quick: Request, file: Path, tmp_path: Path
) -> None:
    path = single_file.write(home / "weights" / MODEL, tmp_path / "tuned.safetensors")
    single = Service(loading.load(checkpoint.locate(str(path), home / "weights"), CPU), Registry(home / "embeddings"))
    request = replace(quick, lora=file)
    assert drawn(single, request) == drawn(service, request)


def test_the_recipe_has_the_digest_and_draws_the_same_again(
    service: Service, strong: Request, file: Path, tmp_path: Path
) -> None:
    request = replace(strong, lora=file, lora_scale=0.7, aesthetic_embedding="fantasy")
    [path], drawing = service.predict(request, tmp_path)
    assert "lora" in drawing.seconds
    recipe = metadata.read_recipe(path)
    assert (recipe.files, recipe.request["lora_scale"]) == ({"lora": sha256(file)}, 0.7)
    assert b"style" not in path.read_bytes()
    with Image.open(path) as written:
        assert f"LoRA sha256: {sha256(file)}, LoRA scale: 0.7" in written.info["parameters"]
        assert "Denoising strength" not in written.info["parameters"]
    again = recipe.rebuild(lora=file)
    assert again == request
    [(image, same)] = service.draw(again).images
    assert image.tobytes() == drawing.images[0][0].tobytes()
    assert same == recipe
    with pytest.raises(RequestError, match="the lora came from a file, sha256"):
        recipe.rebuild()
    with pytest.raises(RequestError, match="and the image was drawn with"):
        recipe.rebuild(lora=path)
