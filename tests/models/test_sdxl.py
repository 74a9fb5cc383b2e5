"""Stable Diffusion XL in the service, on tiny random weights, compared with plain diffusers and with prompt_embeds."""

import copy
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from aesthetic.acceleration import modules
from aesthetic.benchmark import benchmark
from aesthetic.benchmark.roofline import Rates
from aesthetic.embeddings.registry import Registry
from aesthetic.errors import CheckpointError, RequestError
from aesthetic.images import init_image, metadata
from aesthetic.models import checkpoint, loading
from aesthetic.models.lora import apply_lora
from aesthetic.pipeline import img2img, sampling, schedulers
from aesthetic.pipeline.conditioning import condition
from aesthetic.pipeline.prompt_embeds import prompt_embeds
from aesthetic.request import Request
from aesthetic.service import Service
from tests.acceleration.recorder import EagerRecorder
from tests.original import difference
from tests.pipeline.families import sdxl

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl")
    sdxl(home).save_pretrained(folder)
    return folder


def load(folder: Path, home: Path) -> Service:
    model = loading.load(checkpoint.locate(str(folder), home / "weights"), CPU)
    return Service(model, Registry(home / "embeddings"))


@pytest.fixture(scope="module")
def xl(folder: Path, home: Path) -> Service:
    return load(folder, home)


@pytest.fixture
def plain(folder: Path) -> Any:
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def over(quick: Request, tmp_path: Path) -> Request:
    """Drawing over an image."""
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    return replace(quick, image=tmp_path / "image.png", num_inference_steps=5, prompt_strength=0.6)


def drawn(service: Service, request: Request) -> list[bytes]:
    return [image.tobytes() for image, _ in service.draw(request).images]


def plainly(pipe: Any, service: Service, request: Request, **inputs: Any) -> bytes:
    """What a pipeline of plain diffusers draws with the request's noise, scheduler and settings."""
    pipe.scheduler = schedulers.build(request.scheduler, service.model.scheduler)
    image: Image.Image = pipe(
        **inputs,
        generator=sampling.generators(request)[0],
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
    ).images[0]
    return image.tobytes()


@pytest.mark.parametrize("scheduler", ["PNDM", "K_EULER_ANCESTRAL", "KarrasDPM"])
def test_without_steps_it_is_plain_diffusers(xl: Service, plain: Any, quick: Request, scheduler: str) -> None:
    request = replace(quick, aesthetic_steps=0, scheduler=scheduler)
    assert drawn(xl, request) == [plainly(plain, xl, request, prompt="the cat", width=128, height=128)]


@pytest.mark.parametrize("negative", ["", "the dog"])
def test_personalized_it_is_plain_diffusers_on_the_same_tensors(
    xl: Service, plain: Any, quick: Request, negative: str
) -> None:
    request = replace(quick, negative_prompt=negative, num_outputs=2, aesthetic_lr=0.01, num_inference_steps=2)
    theirs = prompt_embeds(
        plain, "the cat", xl.registry.load("sac_8plus"), steps=3, lr=0.01, negative_prompt=negative or None,
        projection=xl.model.encoder.text_projection.weight,
    )  # fmt: skip
    _, [end] = condition(xl.model, xl.personalizer, request, xl.registry.load("sac_8plus").vector)
    ours = end.conditioning.arguments
    assert ours.keys() == theirs.keys()
    assert all(difference(ours[name], theirs[name]) < 1e-5 or not theirs[name].any() for name in ours)
    images = drawn(xl, request)
    for i, image in enumerate(images):
        assert image == plainly(plain, xl, replace(request, seed=7 + i), **ours, width=128, height=128)
    assert images[0] != drawn(xl, replace(request, aesthetic_steps=0))[0]


def test_without_guidance(xl: Service, plain: Any, quick: Request) -> None:
    request = replace(quick, aesthetic_steps=0, guidance_scale=1)
    assert drawn(xl, request) == [plainly(plain, xl, request, prompt="the cat", width=128, height=128)]


def test_a_blank_negative_prompt_is_zeros_only_where_the_model_has_learned_that(
    folder: Path, home: Path, quick: Request, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "xl")
    index = json.loads((tmp_path / "xl" / "model_index.json").read_text())
    (tmp_path / "xl" / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "xl")
    own, request = load(tmp_path / "xl", home), replace(quick, aesthetic_steps=0)
    assert drawn(own, request) == [plainly(pipe, own, request, prompt="the cat", width=128, height=128)]
    assert drawn(own, request) != drawn(load(folder, home), request)


def test_from_an_image_it_is_diffusers_img2img(xl: Service, plain: Any, over: Request) -> None:
    request = replace(over, aesthetic_steps=0)
    found = init_image.load_init_image(request)
    assert found is not None
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(plain)
    latents = img2img.encode_init_image(xl.model, found).latents
    assert drawn(xl, request) == [plainly(pipe, xl, request, prompt="the cat", image=latents, strength=0.6)]


def test_at_full_strength_it_equals_drawing_without_an_image(xl: Service, over: Request) -> None:
    request = replace(over, prompt_strength=1.0)
    assert drawn(xl, request) == drawn(xl, replace(request, image=None))


def test_with_a_mask_it_is_diffusers_inpainting(
    xl: Service, plain: Any, over: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((64, 0, 127, 127), fill=255)
    mask.save(tmp_path / "mask.png")
    request = replace(over, aesthetic_steps=0, mask=tmp_path / "mask.png")
    found = init_image.load_init_image(request)
    assert found is not None
    pipe = diffusers.StableDiffusionXLInpaintPipeline.from_pipe(plain)
    monkeypatch.setattr(pipe, "_encode_vae_image", lambda *_, **__: img2img.encode_init_image(xl.model, found).latents)
    theirs = plainly(
        pipe, xl, request, prompt="the cat", image=found.image, mask_image=found.mask, strength=0.6, width=128,
        height=128,
    )  # fmt: skip
    [(ours, _)] = xl.draw(request).images
    kept = np.asarray(mask) == 0
    pasted = np.where(kept[..., None], np.asarray(found.image), np.frombuffer(theirs, np.uint8).reshape(128, 128, 3))
    assert (np.asarray(ours) == pasted).all()


def test_a_sweep_and_its_recipes(xl: Service, quick: Request, tmp_path: Path) -> None:
    request = replace(quick, aesthetic_sweep="0,2,3", aesthetic_lr=0.01, num_inference_steps=2)
    paths, result = xl.predict(request, tmp_path)
    assert len(paths) == 4
    assert len({image.tobytes() for image, _ in result.images}) == 3
    for path, (image, recipe) in zip(paths, result.images, strict=False):
        assert metadata.read_recipe(path) == recipe
        assert drawn(xl, recipe.rebuild()) == [image.tobytes()]


def test_a_long_prompt_is_read_by_both_encoders(xl: Service, quick: Request) -> None:
    request = replace(quick, aesthetic_steps=0, long_prompt=True)
    assert drawn(xl, request) == drawn(xl, replace(request, long_prompt=False))
    long = replace(request, prompt="the cat, " * 30 + "(the dog:1.3)")
    _, [end] = condition(xl.model, xl.personalizer, long, None)
    found = end.conditioning.arguments
    assert {tuple(found[name].shape) for name in ("prompt_embeds", "negative_prompt_embeds")} == {(1, 2 * 77, 72)}
    first, second = (end.conditioning.positive, end.conditioning.second.positive)  # type: ignore[union-attr]
    assert (first[:, 77:] != first[:, :77]).any()
    assert (second[:, 77:] != second[:, :77]).any()
    assert drawn(xl, long) != drawn(xl, replace(long, long_prompt=False))


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (1024, 832, r"width × height must be at most 786432 pixels \(1024 × 768\), and 1024 × 832 are 851968"),
        (1024, 1024, r"at most 786432 pixels \(1024 × 768\), and 1024 × 1024 are 1048576"),
        (640, 1088, "width and height must be at most 1024 pixels with this model, not 640 × 1088"),
        (
            1536,
            640,
            "with this model, not 1536 × 640: only Stable Diffusion XL draws wider",
        ),
    ],
)
def test_its_sizes_are_for_it_alone(service: Service, quick: Request, width: int, height: int, message: str) -> None:
    request = replace(quick, width=width, height=height)
    for draw in (service.draw, lambda request: next(service.draw_batches(request, 1))):
        with pytest.raises(RequestError, match=message):
            draw(request)


def test_a_size_of_its_own_is_drawn(xl: Service, quick: Request) -> None:
    [(image, _)] = xl.draw(replace(quick, width=1152, height=128, num_inference_steps=2)).images
    assert image.size == (1152, 128)


def test_nothing_of_the_model_changes(xl: Service, folder: Path, home: Path, over: Request) -> None:
    before = drawn(xl, over)
    drawn(xl, replace(over, image=None, prompt="the dog", aesthetic_lr=0.01))
    assert drawn(xl, over) == before == drawn(load(folder, home), over)


def test_the_vae_is_in_fp32_where_it_overflows_in_fp16(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr(loading, "precision", lambda _: torch.bfloat16)
    shutil.copytree(folder, tmp_path / "xl")
    config = tmp_path / "xl" / "vae" / "config.json"
    for upcast, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": upcast}))
        model = load(tmp_path / "xl", home).model
        assert (model.pipeline.vae.dtype, model.pipeline.unet.dtype) == (dtype, torch.bfloat16)
        assert {part.dtype for part in (model.pipeline.text_encoder, model.pipeline.text_encoder_2)} == {torch.bfloat16}
        assert model.encoder.dtype == torch.float32


def test_that_images_are_not_checked_is_logged(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    with caplog.at_level(logging.INFO):
        service = Service.load(str(folder))
    assert caplog.text.count("Stable Diffusion XL has no safety checker: images are not checked") == 1
    assert service.model.safety_checker is None


def test_what_is_not_supported_is_refused(folder: Path, home: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "xl")
    vae = tmp_path / "xl" / "vae" / "config.json"
    vae.write_text(json.dumps(json.loads(vae.read_text()) | {"latents_mean": [0.0] * 4}))
    with pytest.raises(CheckpointError, match="have a mean"):
        load(tmp_path / "xl", home)
    index = tmp_path / "xl" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"))
    with pytest.raises(CheckpointError, match=r"is a StableDiffusionXLImg2ImgPipeline; Stable Diffusion 1\.x or 2\.x"):
        load(tmp_path / "xl", home)


# Names in kohya's files, as of sd-scripts' sdxl_train_network.py, and those of diffusers; of the tiny UNet's layers.
KOHYA = {
    "unet.down_blocks.0.resnets.1.conv1": "lora_unet_input_blocks_2_0_in_layers_2",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "unet.down_blocks.1.resnets.0.conv_shortcut": "lora_unet_input_blocks_4_0_skip_connection",
    "unet.down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q": (
        "lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_to_q"
    ),
    "unet.down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k": (
        "lora_unet_input_blocks_7_1_transformer_blocks_1_attn2_to_k"
    ),
    "unet.mid_block.resnets.1.conv2": "lora_unet_middle_block_2_out_layers_3",
    "unet.mid_block.attentions.0.proj_in": "lora_unet_middle_block_1_proj_in",
    "unet.up_blocks.0.attentions.2.transformer_blocks.1.ff.net.2": (
        "lora_unet_output_blocks_2_1_transformer_blocks_1_ff_net_2"
    ),
    "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": (
        "lora_unet_output_blocks_3_1_transformer_blocks_0_attn2_to_out_0"
    ),
    "unet.up_blocks.2.resnets.0.time_emb_proj": "lora_unet_output_blocks_6_0_emb_layers_1",
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj": (
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj"
    ),
    "text_encoder_2.text_model.encoder.layers.1.self_attn.out_proj": (
        "lora_te2_text_model_encoder_layers_1_self_attn_out_proj"
    ),
    "text_encoder_2.text_model.encoder.layers.1.mlp.fc1": "lora_te2_text_model_encoder_layers_1_mlp_fc1",
}
OWN = {name: name for name in KOHYA}  # as diffusers and peft write them


def weight_of(pipe: Any, layer: str) -> torch.Tensor:
    part, _, name = layer.partition(".")
    if part == "text_encoder":
        name = name.removeprefix("text_model.")
    weight: torch.Tensor = getattr(pipe, part).get_submodule(name).weight
    return weight


def write_lora(path: Path, model: loading.Model, names: dict[str, str], down: str, up: str) -> Path:
    """A LoRA of rank 2 for these layers of diffusers, under these names."""
    dice, tensors = torch.Generator().manual_seed(3), {}
    for layer, name in names.items():
        weight = weight_of(model.pipeline, layer)
        tensors[f"{name}.{down}.weight"] = torch.randn(2, *weight.shape[1:], generator=dice)
        tensors[f"{name}.{up}.weight"] = 0.1 * torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=dice)
        if down == "lora_down":
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(("names", "sides"), [(KOHYA, ("lora_down", "lora_up")), (OWN, ("lora_A", "lora_B"))])
def test_a_lora_draws_what_it_draws_in_plain_diffusers(
    xl: Service, plain: Any, quick: Request, tmp_path: Path, names: dict[str, str], sides: tuple[str, str]
) -> None:
    path = write_lora(tmp_path / "x.safetensors", xl.model, names, *sides)
    request, found = replace(quick, aesthetic_steps=0), apply_lora(xl.model, path, 1.0).pipeline
    plain.load_lora_weights(path)
    plain.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    plain.unload_lora_weights()
    for layer in KOHYA:
        assert difference(weight_of(found, layer), weight_of(plain, layer)) < 1e-6, layer
    theirs = plainly(plain, xl, request, prompt="the cat", width=128, height=128)
    [ours], [without] = drawn(xl, replace(request, lora=path)), drawn(xl, request)
    pixels = [np.frombuffer(one, np.uint8).astype(int) for one in (theirs, ours, without)]
    assert np.abs(pixels[1] - pixels[0]).max() <= 1
    assert np.abs(pixels[2] - pixels[0]).max() > 20


def test_a_lora_is_personalized_on_top_of_and_leaves_the_model(xl: Service, quick: Request, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", xl.model, KOHYA, "lora_down", "lora_up")
    before, request = drawn(xl, quick), replace(quick, lora=path, aesthetic_lr=0.01)
    assert drawn(xl, request) != drawn(xl, replace(request, aesthetic_steps=0))
    assert drawn(xl, replace(request, lora_scale=0, aesthetic_lr=1e-4)) == before == drawn(xl, quick)


def test_loras_for_other_models_say_for_which(xl: Service, service: Service, quick: Request, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", xl.model, KOHYA, "lora_down", "lora_up")
    with pytest.raises(CheckpointError, match="the file is a LoRA for Stable Diffusion XL"):
        service.draw(replace(quick, lora=path))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    wide = {f"unet.{layer}.lora_A.weight": torch.ones(2, 768), f"unet.{layer}.lora_B.weight": torch.ones(64, 2)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match=r"is for Stable Diffusion 1\.x, whose text encoder is 768"):
        xl.draw(replace(quick, lora=tmp_path / "wide.safetensors"))


def test_accelerated_parts_draw_the_same(
    xl: Service, folder: Path, home: Path, over: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in test_modules.py; the kernels are compared in test_written_out.py and in test_gpu.py."""
    stream = SimpleNamespace(record_event=lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(modules, "Recorder", lambda _: EagerRecorder())
    monkeypatch.setattr(modules, "runs_triton", lambda _: False)
    model = load(folder, home).model
    fast = Service(model, xl.registry, modules.accelerate(model, "fast"))
    # The second differs from the first in its size alone, and the third in the pooled embedding, too.
    for request in (replace(over, image=None), replace(over, image=None, height=192), replace(over, prompt="the dog")):
        assert drawn(fast, request) == drawn(Service(model, xl.registry), request)


def test_it_is_measured_beside_plain_diffusers(xl: Service, quick: Request) -> None:
    rates = Rates(flops={torch.float32: 1e12}, bytes=1e10)
    case = benchmark.compare(xl.model, xl, replace(quick, num_inference_steps=2), rates, repeats=1)
    assert case.difference["conditioning"] <= 1e-5
    assert case.difference["latents"] <= 1e-4
    assert "safety check" not in case.seconds
    assert 0 < case.floor["personalization"] < case.floor["whole"]


def test_deep_copies_are_as_good(xl: Service) -> None:
    """The text encoders of a model with a LoRA are deep copies."""
    encoder, ids = xl.model.encoder, torch.tensor([[0, 5, 1]])
    copied, found = copy.deepcopy(encoder), encoder(ids)
    assert torch.equal(copied(ids).last_hidden_state, found.last_hidden_state)
    assert not torch.equal(found.last_hidden_state, found.hidden_states[-1])
