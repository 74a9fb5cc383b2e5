"""prompt_embeds with pipelines of other families, which have several text encoders."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import peft
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aesthetic.embeddings.embedding import Aesthetic
from aesthetic.errors import CheckpointError, EmbeddingError
from aesthetic.models import clip
from aesthetic.pipeline.make_aesthetic import make_aesthetic
from aesthetic.pipeline.prompt_embeds import prompt_embeds
from tests.original import difference
from tests.pipeline.families import FAMILIES, sdxl

FIRST, SECOND = (torch.randn(1, dim, generator=torch.Generator().manual_seed(dim)) for dim in (24, 48))
PROJECTION = torch.randn(24, 32, generator=torch.Generator().manual_seed(1))
OPTIONS: dict[str, Any] = {"projection": PROJECTION, "steps": 3, "lr": 1e-3}
PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def draw(pipe: Any, **inputs: Any) -> bytes:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    image: Image.Image = pipe(**inputs, num_inference_steps=2, generator=noise).images[0]
    return image.tobytes()


def trained(encoder: Any, embed: Callable[[Any], Tensor], aesthetic: Tensor) -> Any:
    """A copy after three steps of the paper's formula, with Adam's own written out."""
    copied = copy.deepcopy(encoder).requires_grad_(True)
    weights = [weight for name, weight in copied.named_parameters() if not name.startswith("text_projection")]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in (1, 2, 3):
        cosine = torch.cosine_similarity(embed(copied), aesthetic).mean()
        for i, gradient in enumerate(torch.autograd.grad(-cosine, weights)):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            change = first[i] / (1 - 0.9**step) / ((second[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            weights[i].data -= OPTIONS["lr"] * change
    return copied


def test_both_encoders_of_sdxl_take_the_papers_steps(home: Path) -> None:
    pipe = sdxl(home)
    found = prompt_embeds(pipe, "the cat", [SECOND, FIRST], negative_prompt="the dog", **OPTIONS)
    ids, ids_2 = (
        tokenizer("the cat", padding="max_length", return_tensors="pt").input_ids
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)
    )
    one = trained(pipe.text_encoder, lambda encoder: encoder(ids).pooler_output @ PROJECTION.T, FIRST)
    two = trained(pipe.text_encoder_2, lambda encoder: encoder(ids_2).text_embeds, SECOND)
    with torch.no_grad():
        hidden = [encoder(tokens, output_hidden_states=True) for encoder, tokens in ((one, ids), (two, ids_2))]
    assert difference(found["prompt_embeds"], torch.cat([each.hidden_states[-2] for each in hidden], -1)) < 1e-5
    assert difference(found["pooled_prompt_embeds"], hidden[1].text_embeds) < 1e-5
    _, negative, _, pooled = pipe.encode_prompt("the cat", negative_prompt="the dog")
    assert torch.equal(found["negative_prompt_embeds"], negative)
    assert torch.equal(found["negative_pooled_prompt_embeds"], pooled)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_from_it(home: Path, family: str) -> None:
    pipe = FAMILIES[family](home)
    aesthetics = [FIRST] if family == "FLUX" else [FIRST, SECOND]
    before = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder")}
    weights = {name: [weight.clone() for weight in part.parameters()] for name, part in before.items()}
    plain = draw(pipe, prompt="the cat", width=64, height=64)
    still, moved = (
        draw(pipe, **prompt_embeds(pipe, "the cat", aesthetics, **OPTIONS | {"steps": steps}), width=64, height=64)
        for steps in (0, 3)
    )
    assert still == plain
    assert moved != plain
    for name, part in before.items():
        assert getattr(pipe, name) is part
        assert all(map(torch.equal, part.parameters(), weights[name]))


@pytest.mark.parametrize("kind", ["image to image", "inpainting", "ControlNet"])
def test_sdxls_other_pipelines_draw_from_it(home: Path, kind: str) -> None:
    pipe, inputs = sdxl(home), {"width": 64, "height": 64, "image": PICTURE}
    if kind == "image to image":
        pipe, inputs = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(pipe), {"image": PICTURE, "strength": 1.0}
    elif kind == "inpainting":
        pipe = diffusers.StableDiffusionXLInpaintPipeline.from_pipe(pipe)
        inputs |= {"mask_image": Image.linear_gradient("L").resize((64, 64))}
    else:
        controlnet = diffusers.ControlNetModel.from_unet(pipe.unet)
        pipe = diffusers.StableDiffusionXLControlNetPipeline.from_pipe(pipe, controlnet=controlnet)
    plain = draw(pipe, prompt="the cat", **inputs)
    still, moved = (
        draw(pipe, **prompt_embeds(pipe, "the cat", [FIRST, SECOND], **OPTIONS | {"steps": steps}), **inputs)
        for steps in (0, 3)
    )
    assert still == plain
    assert moved != plain


def test_an_encoder_without_an_aesthetic_stays(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = sdxl(home)
    plain = pipe.encode_prompt("the cat")[0]
    with caplog.at_level(logging.INFO):
        found = prompt_embeds(pipe, "the cat", SECOND, **OPTIONS)["prompt_embeds"]
    assert torch.equal(found[..., :32], plain[..., :32])
    assert not torch.equal(found[..., 32:], plain[..., 32:])
    assert "text_encoder_2: similarity to a vector" in caplog.text
    assert "text_encoder stays as it is: no aesthetic of its CLIP space was given" in caplog.text


def test_each_encoder_follows_its_own_prompt_and_options(home: Path) -> None:
    pipe = sdxl(home)
    options: dict[str, Any] = {"prompt_2": "the dog", "clip_skip": 1}
    still = prompt_embeds(pipe, "the cat", [FIRST, SECOND], **OPTIONS | {"lr": 0.0}, **options)
    assert torch.equal(still["prompt_embeds"], pipe.encode_prompt("the cat", **options)[0])
    moved = prompt_embeds(pipe, "the cat", [FIRST, SECOND], **OPTIONS, **options)["prompt_embeds"]
    alone = prompt_embeds(pipe, "the dog", SECOND, **OPTIONS, clip_skip=1)["prompt_embeds"]
    assert torch.equal(moved[..., 32:], alone[..., 32:])


def test_the_precision_is_the_pipelines(home: Path) -> None:
    pipe = sdxl(home).to(dtype=torch.bfloat16)
    found = prompt_embeds(pipe, "the cat", [FIRST, SECOND], **OPTIONS)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_compiled_encoders_and_those_with_a_lora_are_personalized(home: Path) -> None:
    plain = sdxl(home)
    expected = prompt_embeds(plain, "the cat", [FIRST, SECOND], **OPTIONS)
    compiled = sdxl(home)
    compiled.text_encoder = torch.compile(compiled.text_encoder, backend="eager")
    with torch.compiler.set_stance("force_eager"):  # compiling takes long, and is not what is tested
        found = prompt_embeds(compiled, "the cat", [FIRST, SECOND], **OPTIONS)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with_lora, merged = sdxl(home), sdxl(home)
    with_lora.text_encoder.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2))
    for name, layer in with_lora.text_encoder.named_modules():
        if name.endswith("q_proj"):
            change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
            merged.text_encoder.get_submodule(name).weight.data += change.detach()
    ours, theirs = (prompt_embeds(pipe, "the cat", [FIRST, SECOND], **OPTIONS) for pipe in (with_lora, merged))
    assert difference(ours["prompt_embeds"], theirs["prompt_embeds"]) < 1e-5
    assert difference(ours["prompt_embeds"], expected["prompt_embeds"]) > 1e-3


def test_kept_copies_begin_anew_with_each_prompt(home: Path) -> None:
    pipe, keep = sdxl(home), dict[str, Any]()
    for prompt, targets in (("the cat", [FIRST, SECOND]), ("the dog and", [-FIRST, -SECOND]), ("a", [FIRST])):
        before, expected = dict(keep), prompt_embeds(pipe, prompt, targets, **OPTIONS)
        found = prompt_embeds(pipe, prompt, targets, **OPTIONS, keep=keep)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert all(keep[name] is one for name, one in before.items())
        for weight in pipe.text_encoder.parameters():
            weight.data *= 1.1  # as new weights are loaded


def test_copies_are_not_kept_for_another_encoder_or_one_with_a_lora(home: Path) -> None:
    keep = dict[str, Any]()
    adapter = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2)
    for pipe, lora in ((sdxl(home), None), (FAMILIES["SD3"](home), None), (sdxl(home), None), (sdxl(home), adapter)):
        if lora is not None:
            pipe.text_encoder.add_adapter(lora)
        expected = prompt_embeds(pipe, "the cat", [FIRST, SECOND], **OPTIONS)
        found = prompt_embeds(pipe, "the cat", [FIRST, SECOND], **OPTIONS, keep=keep)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def aesthetic(vector: Tensor, clip_space: str | None) -> Aesthetic:
    return Aesthetic(vector=vector, name="mine", sha256="", clip_space=clip_space)


@pytest.fixture
def cached(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CLIP with the space of SDXL's second text encoder, in Hugging Face's cache as laion/bigG."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--laion--bigG" / "snapshots" / ("0" * 40)
    (folder.parents[1] / "refs").mkdir(parents=True)
    (folder.parents[1] / "refs" / "main").write_text("0" * 40)
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "patch_size": 8, "image_size": 32}
    text, vision["num_attention_heads"] = sdxl(home).text_encoder_2.config.to_dict(), 4
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)
    transformers.CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def test_an_aesthetic_for_the_second_encoder_is_made_with_its_own_clip(home: Path, cached: Path) -> None:
    mine, pipe = make_aesthetic([PICTURE], clip="laion/bigG"), sdxl(home)
    pixels = CLIPImageProcessorPil.from_pretrained(cached)(PICTURE, return_tensors="pt").pixel_values
    with torch.no_grad():
        features = transformers.CLIPModel.from_pretrained(cached).get_image_features(pixels).pooler_output
    assert difference(mine.vector, features / features.norm()) < 1e-6
    assert (mine.clip_space, mine.notes["model"]) == ("laion/bigG", "laion/bigG")
    found = prompt_embeds(pipe, "the cat", [FIRST, mine], **OPTIONS)
    expected = prompt_embeds(pipe, "the cat", [FIRST, mine.vector], **OPTIONS)
    assert torch.equal(found["pooled_prompt_embeds"], expected["pooled_prompt_embeds"])
    with pytest.raises(ValueError, match="give model or clip, not both"):
        make_aesthetic([PICTURE], model="demo", clip="laion/bigG")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("laion/nothing", "the CLIP laion/nothing is not in Hugging Face's cache: run hf download"),
        *[
            (name, "clip takes a CLIP's name on the hub")
            for name in ("../..", "no name", "", "/folder", "a/b@main", Path("a/b"))
        ],
    ],
)
def test_a_clip_that_is_not_there_is_named(name: Any, problem: str, cached: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        make_aesthetic([PICTURE], clip=name)


@pytest.mark.parametrize(
    ("file", "data", "problem"),
    [
        ("model.safetensors", None, r"has no model\*\.safetensors, and pickles are not opened: run hf download"),
        ("model.safetensors", b"", "can't be read"),
        ("config.json", None, "has no config.json"),
        ("config.json", b"[]", "can't be read"),
        ("config.json", b'{"projection_dim": "x"}', "can't be read"),
        ("preprocessor_config.json", None, "has no preprocessor_config.json"),
        ("preprocessor_config.json", b"{", "can't be read"),
    ],
)
def test_a_damaged_clip_is_refused(file: str, data: bytes | None, problem: str, cached: Path) -> None:
    (cached / file).unlink()
    if data is not None:
        (cached / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=problem):
        make_aesthetic([PICTURE], clip="laion/bigG")


def test_a_clip_with_damaged_values_is_refused(cached: Path) -> None:
    tensors = load_file(cached / "model.safetensors")
    tensors["vision_model.post_layernorm.weight"] *= torch.nan
    save_file(tensors, cached / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="values that are not finite"):
        make_aesthetic([PICTURE], clip="laion/bigG")


def test_what_fits_no_encoder_is_refused(home: Path) -> None:
    pipe = sdxl(home)
    space = clip.name_clip_space(pipe.text_encoder_2.text_projection.weight.detach())
    prompt_embeds(pipe, "the cat", aesthetic(SECOND, space), **OPTIONS)
    with pytest.raises(EmbeddingError, match="mine was made in the CLIP space 'clip-0123456789ab'"):
        prompt_embeds(pipe, "the cat", aesthetic(SECOND, "clip-0123456789ab"), **OPTIONS)
    with pytest.raises(EmbeddingError, match="text_encoder_2 can follow one aesthetic, not both"):
        prompt_embeds(pipe, "the cat", [SECOND, SECOND], **OPTIONS)
    with pytest.raises(ValueError, match="long_prompt is for one text encoder"):
        prompt_embeds(pipe, "the cat", SECOND, **OPTIONS, long_prompt=True)
    with pytest.raises(ValueError, match="FluxPipeline encodes a negative prompt by itself"):
        prompt_embeds(FAMILIES["FLUX"](home), "the cat", FIRST, **OPTIONS, negative_prompt="the dog")
    with pytest.raises(ValueError, match="DDPMPipeline has no CLIP text encoder"):
        prompt_embeds(diffusers.DDPMPipeline(pipe.unet, pipe.scheduler), "the cat", FIRST, **OPTIONS)
