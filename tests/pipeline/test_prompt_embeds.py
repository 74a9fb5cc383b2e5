"""prompt_embeds with various diffusers pipelines."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from PIL import Image

from aesthetic.embeddings.registry import Registry
from aesthetic.errors import CheckpointError, DrawingError, EmbeddingError
from aesthetic.models import clip
from aesthetic.pipeline.conditioning import condition
from aesthetic.pipeline.prompt_embeds import prompt_embeds
from aesthetic.request import Request
from aesthetic.service import Service
from tests.snapshot import CLIP, MODEL

LR = 0.01  # so that three steps have a visible effect
PICTURE = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")
MASK = Image.linear_gradient("L").resize((128, 128))


@pytest.fixture(scope="module")
def text_to_image(home: Path) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(home / "weights" / MODEL, variant="fp16")


@pytest.fixture
def options(home: Path) -> dict[str, Any]:
    return {"projection": clip.read_projection(home / "weights" / CLIP), "lr": LR}


def draw(pipe: Any, **inputs: Any) -> bytes:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    image: Image.Image = pipe(**inputs, num_inference_steps=2, generator=noise).images[0]
    assert image.size == (128, 128)
    return image.tobytes()


def test_the_conditioning_is_the_services(
    text_to_image: Any, service: Service, quick: Request, options: dict[str, Any]
) -> None:
    target = service.registry.load("sac_8plus").vector
    _, [stop] = condition(service.model, service.personalizer, quick, target)
    embeds = prompt_embeds(text_to_image, "the cat", target, **(options | {"lr": quick.aesthetic_lr}), steps=3)
    torch.testing.assert_close(embeds["prompt_embeds"], stop.conditioning.positive, rtol=1e-5, atol=1e-6)
    assert torch.equal(embeds["negative_prompt_embeds"], stop.conditioning.negative)
    assert not any(tensor.requires_grad for tensor in embeds.values())


@pytest.mark.parametrize("kind", ["text to image", "image to image", "inpainting", "ControlNet"])
def test_every_pipeline_draws_from_it(text_to_image: Any, service: Service, options: dict[str, Any], kind: str) -> None:
    target = service.registry.load("sac_8plus").vector
    before = {name: weight.clone() for name, weight in text_to_image.text_encoder.state_dict().items()}
    pipe: Any = text_to_image
    inputs: dict[str, Any] = {"width": 128, "height": 128}
    if kind == "image to image":
        pipe, inputs = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe), {"image": PICTURE, "strength": 1.0}
    elif kind == "inpainting":
        pipe = diffusers.StableDiffusionInpaintPipeline.from_pipe(pipe)
        inputs |= {"image": PICTURE, "mask_image": MASK}
    elif kind == "ControlNet":
        controlnet = diffusers.ControlNetModel.from_unet(pipe.unet)
        pipe = diffusers.StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=controlnet)
        inputs |= {"image": PICTURE}
    plain = draw(pipe, prompt="the cat", negative_prompt="the dog", **inputs)
    ours = [
        draw(
            pipe, **prompt_embeds(pipe, "the cat", target, negative_prompt="the dog", steps=steps, **options), **inputs
        )
        for steps in (0, 3)
    ]
    assert ours[0] == plain
    assert ours[1] != plain
    after = text_to_image.text_encoder.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_the_projection_is_that_of_the_downloaded_clip(
    text_to_image: Any, service: Service, options: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = service.registry.load("sac_8plus").vector
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    found = prompt_embeds(text_to_image, "the cat", target, steps=1)["prompt_embeds"]
    given = prompt_embeds(text_to_image, "the cat", target, steps=1, projection=options["projection"])["prompt_embeds"]
    assert torch.equal(found, given)
    monkeypatch.setenv("AESTHETIC_HOME", str(home / "nowhere"))
    with pytest.raises(CheckpointError, match="run script/download-weights clip-vit-large-patch14"):
        prompt_embeds(text_to_image, "the cat", target, steps=1)


def test_textual_inversions_of_several_vectors_are_used(home: Path, service: Service, options: dict[str, Any]) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(home / "weights" / MODEL, variant="fp16")
    pipe.load_textual_inversion({"<two>": torch.ones(2, 32)}, token="<two>")
    target = service.registry.load("sac_8plus").vector
    still, plain = (
        prompt_embeds(pipe, "the <two>", target, **(options | {"lr": 0.0}), steps=steps)["prompt_embeds"]
        for steps in (1, 0)
    )
    torch.testing.assert_close(still, plain)


def test_long_prompts_are_the_services(
    text_to_image: Any, service: Service, quick: Request, options: dict[str, Any]
) -> None:
    target = service.registry.load("sac_8plus").vector
    text = "the cat and the dog, " * 20 + "(the cat:1.3)"
    _, [stop] = condition(service.model, service.personalizer, replace(quick, prompt=text, long_prompt=True), target)
    options |= {"lr": quick.aesthetic_lr, "long_prompt": True}
    embeds = prompt_embeds(text_to_image, text, target, **options, steps=3)
    torch.testing.assert_close(embeds["prompt_embeds"], stop.conditioning.positive, rtol=1e-5, atol=1e-6)
    assert torch.equal(embeds["negative_prompt_embeds"], stop.conditioning.negative)
    draw(text_to_image, **embeds, width=128, height=128)


@pytest.mark.parametrize("long_prompt", [False, True])
def test_the_tensors_have_the_precision_of_the_pipeline(
    text_to_image: Any, service: Service, options: dict[str, Any], long_prompt: bool
) -> None:
    half = copy.deepcopy(text_to_image.text_encoder).to(torch.bfloat16)
    pipe = type(text_to_image)(**{**text_to_image.components, "text_encoder": half}, requires_safety_checker=False)
    target = service.registry.load("sac_8plus").vector
    embeds = prompt_embeds(pipe, "the cat", target, **options, steps=1, long_prompt=long_prompt)
    assert {tensor.dtype for tensor in embeds.values()} == {torch.bfloat16}
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("prompt", "aesthetic", "projection", "message"),
    [
        (["a", "b"], torch.ones(1, 24), None, "takes one prompt, a string, not \\['a', 'b'\\]"),
        ("a", [], None, "no aesthetic was given"),
        ("a", None, None, "no aesthetic was given"),
        ("a", torch.ones(1, 24), torch.zeros(24, 32), "the projection must be finite, and not zero"),
        ("a", torch.ones(1, 24), torch.full((24, 32), torch.nan), "the projection must be finite, and not zero"),
    ],
)
def test_bad_arguments_are_named(
    text_to_image: Any, options: dict[str, Any], prompt: Any, aesthetic: Any, projection: Any, message: str
) -> None:
    options |= {} if projection is None else {"projection": projection}
    with pytest.raises(ValueError, match=message):
        prompt_embeds(text_to_image, prompt, aesthetic, **options)


def test_without_guidance_there_is_no_negative_conditioning(
    text_to_image: Any, service: Service, options: dict[str, Any]
) -> None:
    target = service.registry.load("sac_8plus").vector
    both = prompt_embeds(text_to_image, "the cat", target, **options, steps=1)
    one = prompt_embeds(text_to_image, "the cat", target, **options, steps=1, do_classifier_free_guidance=False)
    assert list(one) == ["prompt_embeds"]
    assert torch.equal(one["prompt_embeds"], both["prompt_embeds"])


def test_an_aesthetic_a_name_and_a_vector_are_the_same(
    text_to_image: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    fantasy = Registry(home / "embeddings").load("fantasy")
    expected = prompt_embeds(text_to_image, "the cat", fantasy.vector, steps=2, lr=LR)["prompt_embeds"]
    for source in (fantasy, "fantasy", home / "embeddings" / "fantasy.pt"):
        assert torch.equal(prompt_embeds(text_to_image, "the cat", source, steps=2, lr=LR)["prompt_embeds"], expected)


def test_an_aesthetic_of_another_clip_space_is_refused(
    text_to_image: Any, home: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    fantasy = Registry(home / "embeddings").load("fantasy")
    theirs = replace(fantasy, name="theirs", clip_space="clip-0123456789ab")
    wide = replace(fantasy, name="wide", vector=torch.ones(1, 768))
    ours = clip.name_clip_space(options["projection"])
    for given, message in (
        ({}, r"theirs was made in the CLIP space 'clip-0123456789ab', and the model works in openai/clip-vit-large"),
        (options, f"theirs was made in the CLIP space 'clip-0123456789ab', and the model works in {ours}"),
    ):
        with pytest.raises(EmbeddingError, match=message):
            prompt_embeds(text_to_image, "the cat", theirs, steps=1, **given)
        with pytest.raises(EmbeddingError, match="wide has 768 dimensions"):
            prompt_embeds(text_to_image, "the cat", wide, steps=1, **given)
    for clip_space in (ours, "openai/clip-vit-large-patch14", None):  # of a given projection only a digest is known
        prompt_embeds(text_to_image, "the cat", replace(fantasy, clip_space=clip_space), steps=1, **options)


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_prompt_is_not_personalized(
    text_to_image: Any, service: Service, options: dict[str, Any], text: str
) -> None:
    target = service.registry.load("sac_8plus").vector
    embeds = prompt_embeds(text_to_image, text, target, **options)
    assert torch.equal(embeds["prompt_embeds"], embeds["negative_prompt_embeds"])


def test_an_offloaded_text_encoder_is_personalized(home: Path, service: Service, options: dict[str, Any]) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(home / "weights" / MODEL, variant="fp16")
    target = service.registry.load("sac_8plus").vector
    expected = prompt_embeds(pipe, "the cat", target, steps=3, **options)
    # What enable_sequential_cpu_offload does, which itself wants a GPU; test_gpu.py has that.
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        accelerate.cpu_offload(part, torch.device("cpu"))
    assert pipe.text_encoder.device.type == "meta"
    for _ in range(2):
        found = prompt_embeds(pipe, "the cat", target, steps=3, **options)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert pipe.text_encoder.device.type == "meta"
    assert draw(pipe, **found, width=128, height=128)


def test_mismatched_tensors_are_refused(text_to_image: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"32 wide, the projection is 24 × 32 and the aesthetic \[1, 768\]"):
        prompt_embeds(text_to_image, "the cat", torch.ones(1, 768), steps=1, **options)
    with pytest.raises(ValueError, match="finite, and not zero"):
        prompt_embeds(text_to_image, "the cat", torch.zeros(1, 24), steps=1, **options)
    with pytest.raises(ValueError, match="steps and lr must be 0 or more, not -1"):
        prompt_embeds(text_to_image, "the cat", torch.ones(1, 24), steps=-1)
    with pytest.raises(DrawingError, match="the personalization diverged"):
        prompt_embeds(text_to_image, "the cat", torch.ones(1, 24), steps=1, **(options | {"lr": float("inf")}))
