"""A model in a single file is, to the bit, the one in the folder; other files are refused by their kind."""

import json
import shutil
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aesthetic.embeddings.registry import Registry
from aesthetic.errors import CheckpointError
from aesthetic.models import checkpoint, file_kind, loading, single_file
from aesthetic.models.loading import Model
from aesthetic.pipeline import schedulers
from aesthetic.request import Request
from aesthetic.service import Service
from tests.models import single_file as layout
from tests.pipeline.families import sdxl
from tests.snapshot import CLIP, MODEL

CPU = torch.device("cpu")


def weights(names: Iterable[str]) -> dict[str, Tensor]:
    return {name: torch.zeros(4, 4, 3, 3) for name in names}


@pytest.fixture(scope="module")
def file(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `home` in fp16, as one file."""
    return layout.write(home / "weights" / MODEL, tmp_path_factory.mktemp("ldm") / "tuned.safetensors")


def load(path: Path, home: Path) -> Model:
    return loading.load(checkpoint.locate(str(path), home / "weights"), CPU)


def parts(model: Model) -> dict[str, dict[str, Tensor]]:
    pipe = model.pipeline
    modules = {"unet": pipe.unet, "vae": pipe.vae, "safety": pipe.safety_checker, "encoder": model.encoder}
    return {name: module.state_dict() for name, module in modules.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_weight_is_that_of_the_folder(model: Model, home: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    found = load(layout.write(home / "weights" / MODEL, tmp_path / "tuned.safetensors", dtype), home)
    for part, expected in parts(model).items():
        weights = parts(found)[part]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (found.clip_space, found.dim, found.scheduler) == (model.clip_space, model.dim, model.scheduler)
    assert found.pipeline.text_encoder is found.encoder.text_model
    assert not found.encoder.training
    assert not any(weight.requires_grad for weight in found.encoder.parameters())
    assert found.vision is not None


def test_it_draws_the_same_image(service: Service, file: Path, home: Path, quick: Request) -> None:
    single = Service(load(file, home), Registry(home / "embeddings"))
    for request in (replace(quick, aesthetic_steps=0), quick):
        [(theirs, _)] = service.draw(request).images
        [(ours, recipe)] = single.draw(request).images
        assert ours.tobytes() == theirs.tobytes()
        assert (recipe.model["name"], recipe.model["revision"]) == ("tuned", "local")


@pytest.fixture(scope="module")
def xl_folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion XL in fp16; diffusers takes the second encoder to be as wide as its projection."""
    folder = tmp_path_factory.mktemp("xl")
    sdxl(home, pooled=40).to(torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture
def xl_file(xl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as one file, whose configuration is that of `xl_folder` instead of the real one."""
    config = shutil.copytree(
        xl_folder, tmp_path / "config", ignore=shutil.ignore_patterns("tokenizer*", "*.safetensors")
    )
    monkeypatch.setattr(loading, "XL", config)
    return layout.write(xl_folder, tmp_path / "tuned.safetensors")


def test_xls_file_has_every_weight_of_the_folder_and_draws_the_same_image(
    xl_folder: Path, xl_file: Path, home: Path, quick: Request
) -> None:
    theirs, ours = load(xl_folder, home), load(xl_file, home)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected, found = (getattr(model.pipeline, name) for model in (theirs, ours))
        assert type(found) is type(expected)
        weights = found.state_dict()
        assert weights.keys() == expected.state_dict().keys()
        assert all(torch.equal(weights[key], weight) for key, weight in expected.state_dict().items())
    for name in ("tokenizer", "tokenizer_2"):
        expected, found = (getattr(model.pipeline, name)("the cat", padding="max_length") for model in (theirs, ours))
        assert found.input_ids == expected.input_ids
    images = [Service(one, Registry(home / "embeddings")).draw(quick).images[0][0].tobytes() for one in (theirs, ours)]
    assert images[0] == images[1]


def test_xls_second_encoder_is_complete(xl_file: Path, home: Path, tmp_path: Path) -> None:
    tensors = load_file(xl_file)
    del tensors["conditioner.embedders.1.model.ln_final.weight"]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"second text encoder's weights .* lack .*final_layer_norm\.weight"):
        load(tmp_path / "x.safetensors", home)


def test_xls_samplers_are_those_of_the_published_configuration() -> None:
    config = dict(diffusers.EulerDiscreteScheduler.from_pretrained(loading.XL, subfolder="scheduler").config)
    wanted = {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1, "beta_end": 0.012}
    assert config.items() >= wanted.items()
    wanted = {"clip_sample": False, "set_alpha_to_one": False}
    assert schedulers.build("DDIM", config).config.items() >= wanted.items()


def test_in_half_precision_the_encoder_stays_whole(
    file: Path, home: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "precision", lambda _: torch.float16)  # as on a GPU
    found = load(file, home)
    for part in (found.pipeline.unet, found.pipeline.vae, found.pipeline.text_encoder, found.pipeline.safety_checker):
        assert {weight.dtype for weight in part.parameters()} == {torch.float16}
    expected = model.encoder.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.encoder.state_dict().items())


def test_its_own_text_encoder_is_personalized(file: Path, home: Path, model: Model, tmp_path: Path) -> None:
    tensors = load_file(file)
    name = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    tensors[name] = tensors[name] * 2
    save_file(tensors, tmp_path / "tuned.safetensors")
    found = load(tmp_path / "tuned.safetensors", home)
    plain = model.encoder.text_model.final_layer_norm.weight
    assert torch.equal(found.encoder.text_model.final_layer_norm.weight, 2 * plain)


@pytest.mark.parametrize("name", sorted(file_kind.SIGNS.keys() - {single_file.UNET, single_file.TEXTS_XL}))
def test_other_kinds_of_files_are_named(name: str, tmp_path: Path) -> None:
    save_file({f"some.{name}.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as error:
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")
    assert f"is {file_kind.SIGNS[name]}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoHa"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight", "a LoRA: give it as"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora.up.weight", "a LoRA: give it as"),
    ],
)
def test_a_lora_is_told_by_every_name(name: str, kind: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"is {kind}"):
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")


@pytest.mark.parametrize("needed", [single_file.NEEDED, single_file.NEEDED_XL])
def test_a_part_that_is_missing_is_named(needed: dict[str, str], tmp_path: Path) -> None:
    for lost in needed:
        save_file(weights(needed[part] for part in needed.keys() - {lost}), tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=f"holds no {lost} "):
            single_file.require_stable_diffusion(tmp_path / "x.safetensors")


def test_xls_refiner_is_refused(tmp_path: Path) -> None:
    names = [*single_file.BOTH.values(), "conditioner.embedders.0.model.positional_embedding"]
    save_file(weights(names), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is the refiner of Stable Diffusion XL"):
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("name", "kind"), single_file.OTHER_NOISE.items())
def test_a_model_that_does_not_predict_noise_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    save_file(weights([*single_file.NEEDED_XL.values(), name]), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"is {kind}; a model that predicts noise was expected"):
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_a_quantized_model_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = weights(single_file.NEEDED.values())
    tensors[f"{single_file.TEXT}embeddings.position_ids"] = torch.arange(77)
    save_file(tensors, tmp_path / "x.safetensors")
    single_file.require_stable_diffusion(tmp_path / "x.safetensors")
    save_file(tensors | {f"{single_file.UNET}out.2.weight": torch.zeros(4, dtype=dtype)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"is quantized, or damaged: 'model\..*\.out\.2\.weight' is of"):
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")


def test_a_header_of_very_many_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(weights(single_file.NEEDED.values()), tmp_path / "x.safetensors")
    monkeypatch.setattr(single_file, "MAX_TENSORS", 2)
    with pytest.raises(CheckpointError, match="holds 3 tensors; a model holds a few thousand"):
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")


def test_a_model_for_inpainting_is_refused(tmp_path: Path) -> None:
    tensors = weights(single_file.NEEDED.values()) | {single_file.NEEDED["UNet"]: torch.zeros(4, 9, 3, 3)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"perhaps for inpainting or editing: .* the shape \[4, 9, 3, 3\], and 4 channels were",
    ):
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ""])
def test_pickles_are_not_opened(suffix: str, home: Path, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"was not opened: only \.safetensors .* safetensors\.torch\.save_file"):
        checkpoint.locate(str(path), home / "weights")


def test_the_conversion_that_the_message_describes_works(file: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(file), "epoch": 3}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError) as error:
        single_file.require_stable_diffusion(tmp_path / "x.ckpt")
    program = str(error.value).partition("in Python, ")[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(program, {})  # noqa: S102
    single_file.require_stable_diffusion(tmp_path / "model.safetensors")


def test_a_damaged_header_is_not_quoted_at_length(tmp_path: Path) -> None:
    text = json.dumps({"a": {"dtype": "\x1b[31m" + "x" * 10**5, "shape": [], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="damaged or cut short") as error:
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "data", [b"", b"text", struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"{}x", struct.pack("<Q", 9) + b'{"a": [}}']
)
def test_damaged_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is not a \.safetensors file, or is damaged"):
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")


def test_a_file_cut_short_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        single_file.require_stable_diffusion(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.middle_block.1.norm.weight", "lacks weights of Stable Diffusion 1"),
        ("first_stage_model.decoder.norm_out.weight", "lacks weights of Stable Diffusion 1"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.weight",
            "lack final_layer_norm.weight and 0 others",
        ),
    ],
)
def test_weights_that_are_missing_or_have_another_shape_are_refused(
    file: Path, home: Path, tmp_path: Path, name: str, message: str
) -> None:
    tensors = load_file(file)
    whole = tensors.pop(name)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"x\.safetensors {message}"):
        load(tmp_path / "x.safetensors", home)
    save_file({**tensors, name: torch.cat([whole, whole])}, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=r"x\.safetensors lacks weights of Stable Diffusion 1\.x, or has them in other shapes"
    ):
        load(tmp_path / "x.safetensors", home)


def test_a_missing_base_model_is_named(file: Path, home: Path, tmp_path: Path) -> None:
    weights = shutil.copytree(home / "weights", tmp_path / "weights")
    assert checkpoint.locate(str(file), weights).clip == weights / CLIP
    (weights / MODEL / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=f"run script/download-weights {MODEL}"):
        checkpoint.locate(str(file), weights)
    manifest = json.loads((weights / "manifest.json").read_text())
    (weights / "manifest.json").write_text(json.dumps({CLIP: manifest[CLIP]}))
    with pytest.raises(CheckpointError, match=f"run script/download-weights {MODEL}"):
        checkpoint.locate(str(file), weights)
