"""Loading, through the files that the real snapshots have."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aesthetic.errors import CheckpointError
from aesthetic.models import checkpoint, clip, loading
from aesthetic.models.loading import Model
from tests import snapshot
from tests.snapshot import CLIP, MODEL, ROOT

CPU = torch.device("cpu")


@pytest.fixture
def weights(home: Path, tmp_path: Path) -> Path:
    """A copy that a test may change. The manifest goes by sizes, which such changes need not keep."""
    copy = shutil.copytree(home / "weights", tmp_path / "weights")
    manifest = json.loads((copy / "manifest.json").read_text())
    for source in manifest.values():
        for file in source["files"].values():
            del file["bytes"]
    snapshot.write_json(copy / "manifest.json", manifest)
    return copy


def load(weights: Path) -> Model:
    return loading.load(checkpoint.locate(MODEL, weights), CPU)


def test_every_weight_is_the_one_in_the_file(model: Model, home: Path) -> None:
    folder = home / "weights" / MODEL
    towers = {
        "unet/diffusion_pytorch_model.fp16.safetensors": (model.pipeline.unet, ""),
        "vae/diffusion_pytorch_model.fp16.safetensors": (model.pipeline.vae, ""),
        "text_encoder/model.fp16.safetensors": (model.pipeline.text_encoder, "text_model."),
        "safety_checker/model.fp16.safetensors": (model.pipeline.safety_checker, ""),
    }
    for file, (tower, prefix) in towers.items():
        stored = {
            name.replace("vision_model.vision_model.", "vision_model."): weight.float()
            for name, weight in load_file(folder / file).items()
            if "position_ids" not in name
        }
        loaded = {prefix + name: weight for name, weight in tower.state_dict().items()}
        assert loaded.keys() == stored.keys()
        assert all(torch.equal(weight, stored[name]) for name, weight in loaded.items())


def test_in_half_precision_the_pipeline_has_the_text_encoder_that_diffusers_loads(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "precision", lambda _: torch.float16)
    model = load(home / "weights")
    theirs = CLIPTextModel.from_pretrained(
        home / "weights" / MODEL / "text_encoder", variant="fp16", dtype=torch.float16
    )
    ours = model.pipeline.text_encoder
    assert {part.dtype for part in (ours, model.pipeline.unet, model.pipeline.vae)} == {torch.float16}
    assert {weight.dtype for weight in model.encoder.parameters()} == {torch.float32}
    assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in ours.state_dict().items())
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_on_a_cpu_everything_is_fp32(model: Model) -> None:
    for part in (model.encoder, model.pipeline.unet, model.pipeline.vae, model.pipeline.safety_checker):
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}


def test_the_projection_and_the_vision_tower_are_clips(model: Model, home: Path) -> None:
    clip = CLIPModel.from_pretrained(home / "weights" / CLIP)
    assert torch.equal(model.encoder.text_projection.weight, clip.text_projection.weight)
    assert model.clip_space == "openai/clip-vit-large-patch14"
    assert model.dim == 24
    image = Image.effect_noise((70, 50), 80).convert("RGB")
    processor = CLIPImageProcessorPil.from_pretrained(home / "weights" / CLIP)
    plain = clip.get_image_features(processor(image, return_tensors="pt").pixel_values).pooler_output
    assert model.vision is not None
    assert torch.equal(model.vision.features([model.vision.prepare(image)]), plain)


def test_nothing_is_trained(model: Model) -> None:
    assert not any(weight.requires_grad for weight in model.encoder.parameters())
    assert not model.encoder.training


def test_a_snapshot_may_bring_a_clip_of_its_own(weights: Path) -> None:
    file = weights / MODEL / "text_encoder" / "model.fp16.safetensors"
    own = torch.randn(20, 32)
    save_file(load_file(file) | {"text_projection.weight": own.half()}, file, metadata={"format": "pt"})
    config = json.loads((weights / CLIP / "config.json").read_text())["vision_config"] | {"projection_dim": 20}
    tower = CLIPVisionModelWithProjection(CLIPVisionModelWithProjection.config_class(**config))
    tower.half().save_pretrained(weights / MODEL / "image_encoder", variant="fp16")
    shutil.rmtree(weights / CLIP)
    model = load(weights)
    assert torch.equal(model.encoder.text_projection.weight, own.half().float())
    assert model.clip_space.startswith("clip-")
    assert model.dim == 20
    assert model.vision is not None
    image = Image.new("RGB", (40, 40))
    assert model.vision.features([model.vision.prepare(image)]).shape == (1, 20)
    assert clip.load_vision(model.snapshot, CPU).clip_space == model.clip_space


def test_a_snapshot_without_a_vision_tower_loads(weights: Path) -> None:
    file = weights / MODEL / "text_encoder" / "model.fp16.safetensors"
    save_file(load_file(file) | {"text_projection.weight": torch.randn(20, 32).half()}, file, metadata={"format": "pt"})
    model = load(weights)
    assert model.vision is None
    with pytest.raises(CheckpointError, match="has no vision tower"):
        clip.load_vision(model.snapshot, CPU)


def test_without_clip_says_what_to_do(weights: Path) -> None:
    shutil.rmtree(weights / CLIP)
    with pytest.raises(CheckpointError, match=f"run script/download-weights {CLIP}"):
        load(weights)


def test_a_text_encoder_of_another_width_is_refused(weights: Path) -> None:
    file = weights / CLIP / "model.safetensors"
    save_file(load_file(file) | {"text_projection.weight": torch.randn(24, 99)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is 32 wide, and the CLIP projection takes 99"):
        load(weights)


def test_missing_weights_are_refused(weights: Path) -> None:
    file = weights / MODEL / "text_encoder" / "model.fp16.safetensors"
    tensors = load_file(file)
    del tensors["text_model.final_layer_norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack final_layer_norm\.weight"):
        load(weights)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_missing_weight_of_unet_or_vae_is_refused(weights: Path, part: str) -> None:
    file = weights / MODEL / part / "diffusion_pytorch_model.fp16.safetensors"
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"the {part}'s weights in .* lack {re.escape(lost)} and 0 others"):
        load(weights)


def test_on_a_cpu_files_in_full_precision_are_preferred(weights: Path) -> None:
    for half in (weights / MODEL).glob("*/*.fp16.safetensors"):
        tensors = {name: tensor.float() + 1e-5 for name, tensor in load_file(half).items()}
        save_file(tensors, half.with_name(half.name.replace(".fp16", "")), metadata={"format": "pt"})
    model = load(weights)
    for name, found in (("unet", model.pipeline.unet), ("text_encoder", model.encoder)):
        [whole] = [file for file in (weights / MODEL / name).glob("*.safetensors") if "fp16" not in file.name]
        key, tensor = next(item for item in load_file(whole).items() if "position" not in item[0])
        assert torch.equal(found.state_dict()[key], tensor)


def test_pickled_weights_are_not_read(weights: Path) -> None:
    file = weights / MODEL / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    torch.save(load_file(file), file.with_name("diffusion_pytorch_model.fp16.bin"))
    file.unlink()
    with pytest.raises(OSError, match="safetensors"):
        loading.load(checkpoint.locate(str(weights / MODEL), weights), CPU)


def test_a_snapshot_without_a_safety_checker_loads(weights: Path) -> None:
    folder = weights / MODEL
    shutil.rmtree(folder / "safety_checker")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = [None, None]
    snapshot.write_json(folder / "model_index.json", index)
    assert loading.load(checkpoint.locate(str(folder), weights), CPU).pipeline.safety_checker is None


def test_a_snapshot_in_fp32_without_a_variant_loads(weights: Path) -> None:
    for file in list((weights / MODEL).glob("*/*.fp16.safetensors")):
        file.rename(file.with_name(file.name.replace(".fp16", "")))
    load_again = loading.load(checkpoint.locate(str(weights / MODEL), weights), CPU)
    assert load_again.pipeline.unet.dtype == torch.float32


HOST = """
import importlib, os, sys
from pathlib import Path
import diffusers, torch, transformers

def state():
    libraries = diffusers.utils.logging, transformers.utils.logging
    return dict(os.environ), [(one.get_verbosity(), one.is_progress_bar_enabled()) for one in libraries]

before = state()
import aesthetic
folder = Path(aesthetic.__file__).parent
for file in folder.rglob("*.py"):
    parts = file.relative_to(folder).with_suffix("").parts
    # Ray and gradio keep settings of their own in the environment.
    if parts[0] not in ("cluster", "ui") and parts[-1] != "__main__":
        importlib.import_module(".".join(("aesthetic", *parts)))
from aesthetic.models import checkpoint, clip, loading
loading.load(checkpoint.locate(None, Path(sys.argv[1]) / "weights"), torch.device("cpu"))
clip.load_vision(checkpoint.locate(None, Path(sys.argv[1]) / "weights"), torch.device("cpu"))
assert state() == before, state()
"""


def test_a_host_program_keeps_its_settings(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    subprocess.run([sys.executable, "-c", HOST, str(home)], check=True, cwd=ROOT, env=environment)
