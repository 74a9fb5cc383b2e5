"""Tests that need a GPU: fp16 compared with fp32, the same noise on every device, CUDA graphs."""

import copy
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image, ImageChops
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from aesthetic.acceleration import modules
from aesthetic.acceleration.cuda_graphs import CACHED, GraphedCallable, Recorder
from aesthetic.acceleration.fast_personalizer import FastPersonalizer, supports
from aesthetic.benchmark import random_model
from aesthetic.cancellation import Predictions
from aesthetic.embeddings import embedding
from aesthetic.embeddings.registry import Registry
from aesthetic.images import init_image
from aesthetic.models import checkpoint, clip, loading
from aesthetic.models.loading import Model
from aesthetic.personalizer import Personalizer
from aesthetic.pipeline import prompt, sampling
from aesthetic.pipeline.prompt_embeds import prompt_embeds
from aesthetic.request import SCHEDULERS, Request
from aesthetic.service import Service
from predict import Predictor
from tests import lora, original
from tests.acceleration.test_written_out import TINY
from tests.canceling import cancel
from tests.models import sd2
from tests.models.test_lora import structure
from tests.original import difference
from tests.snapshot import CLIP, MODEL, ROOT
from tests.test_service import weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]


GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(scope="module")
def gpu(home: Path) -> Model:
    return loading.load(checkpoint.locate(None, home / "weights"), GPU)


@pytest.fixture(scope="module")
def nhwc(gpu: Model) -> Model:
    """The same model with channels-last weights; `gpu` keeps the memory order of its file."""
    return replace(gpu, pipeline=copy.deepcopy(gpu.pipeline))


@pytest.fixture(params=["plain", "fast"])
def gpu_service(home: Path, gpu: Model, nhwc: Model, request: pytest.FixtureRequest) -> Iterator[Service]:
    model = gpu if request.param == "plain" else nhwc
    before = {name: weight.clone() for name, weight in weights(model).items()}
    yield Service(model, Registry(home / "embeddings"), modules.accelerate(model, request.param))
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_the_pipeline_is_fp16_and_the_master_fp32(gpu: Model) -> None:
    for part in (gpu.pipeline.unet, gpu.pipeline.vae, gpu.pipeline.text_encoder, gpu.pipeline.safety_checker):
        assert {(weight.dtype, weight.device.type) for weight in part.parameters()} == {(torch.float16, "cuda")}
    assert {(weight.dtype, weight.device.type) for weight in gpu.encoder.parameters()} == {(torch.float32, "cuda")}


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder(GPU)


@pytest.mark.parametrize("steps", [0, 1, 5, 20])
def test_equals_the_original_loop(gpu: Model, clip: CLIPModel, home: Path, steps: int) -> None:
    tokens = prompt.tokenize_prompt(gpu.pipeline.tokenizer, "the cat", gpu.device).input_ids
    target = Registry(home / "embeddings").load("sac_8plus").vector.cuda()
    theirs = original.conditioning(clip.cuda(), tokens, target, steps=steps, lr=1e-4)
    *_, last = Personalizer(gpu.encoder)(tokens, target, steps=steps, lr=1e-4)
    assert difference(last.conditioning, theirs) <= 1e-5


@pytest.fixture(scope="module")
def full() -> Model:
    """Random weights in the shapes of Stable Diffusion 1.5."""
    return random_model.build("sd15", GPU)


def noises(unet: Any, sample: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    noise: torch.Tensor = unet(
        sample, torch.tensor(500.0, device=GPU), encoder_hidden_states=embeds, return_dict=False
    )[0]
    return noise.float()


@pytest.mark.parametrize(("images", "height", "width"), [(2, 64, 64), (16, 64, 64), (1, 96, 128), (3, 16, 40)])
@torch.no_grad()
def test_the_unet_is_as_near_to_fp32_as_that_of_diffusers(full: Model, images: int, height: int, width: int) -> None:
    fast = modules.Accelerated(full, Recorder(GPU)).wrap(full).pipeline.unet
    theirs, exact = full.pipeline.unet, copy.deepcopy(full.pipeline.unet).float()
    dice = torch.Generator("cuda").manual_seed(0)
    sample, embeds = (
        torch.randn(images, *shape, generator=dice, device=GPU) for shape in ((4, height, width), (77, 768))
    )
    wanted = torch.cat([noises(exact, *(x[i : i + 1].half().float() for x in (sample, embeds))) for i in range(images)])
    ours, again, plain = (noises(unet, sample.half(), embeds.half()) for unet in (fast, fast, theirs))
    assert torch.equal(ours, again)
    assert difference(ours, wanted) <= difference(plain, wanted)
    assert difference(noises(fast, sample.half(), 2 * embeds.half()), ours) > 0.01  # other words, another noise


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 128), (16, 40)])
@torch.no_grad()
def test_the_decoder_is_as_near_to_fp32_as_that_of_diffusers(full: Model, height: int, width: int) -> None:
    vae = full.pipeline.vae
    fast, exact = modules.Accelerated(full, Recorder(GPU)).wrap(full).pipeline.vae, copy.deepcopy(vae).float()
    latents = torch.randn(1, 4, height, width, device=GPU, dtype=torch.float16)
    wanted = exact.decode(latents.float(), return_dict=False)[0]
    ours, plain = (one.decode(latents, return_dict=False)[0].float() for one in (fast, vae))
    assert difference(ours, wanted) <= difference(plain, wanted)


@pytest.fixture(scope="module")
def full_xl() -> Model:
    """Random weights in the shapes of Stable Diffusion XL."""
    return random_model.build("sdxl", GPU)


@pytest.mark.parametrize(("images", "height", "width"), [(2, 128, 128), (2, 80, 192)])
@torch.no_grad()
def test_xls_unet_is_as_near_to_fp32_as_that_of_diffusers(full_xl: Model, images: int, height: int, width: int) -> None:
    fast = modules.Accelerated(full_xl, Recorder(GPU)).wrap(full_xl).pipeline.unet
    dice = torch.Generator("cuda").manual_seed(0)
    sample, embeds, pooled = (
        torch.randn(images, *shape, generator=dice, device=GPU).half()
        for shape in ((4, height, width), (77, 2048), (1280,))
    )
    sizes = torch.tensor([[8.0 * height, 8 * width, 0, 0, 8 * height, 8 * width]] * images, device=GPU)

    def noise(unet: Any, dtype: torch.dtype, pooled: torch.Tensor) -> torch.Tensor:
        added = {"text_embeds": pooled.to(dtype), "time_ids": sizes.to(dtype)}
        options = {"encoder_hidden_states": embeds.to(dtype), "added_cond_kwargs": added, "return_dict": False}
        found: torch.Tensor = unet(sample.to(dtype), torch.tensor(500.0, device=GPU), **options)[0]
        return found.float()

    half, theirs = torch.float16, full_xl.pipeline.unet
    wanted = noise(copy.deepcopy(theirs).float(), torch.float32, pooled)
    ours, again, plain = (noise(unet, half, pooled) for unet in (fast, fast, theirs))
    assert torch.equal(ours, again)
    assert difference(ours, wanted) <= 1.1 * difference(plain, wanted)
    assert difference(noise(fast, half, 2 * pooled), ours) > 1e-3  # other words, another noise


def test_xl_is_personalized_as_by_the_plain_loop(full_xl: Model) -> None:
    fast = FastPersonalizer(full_xl.encoder, Recorder(GPU))
    tokens = prompt.tokenize_prompt(full_xl.pipeline.tokenizer, "the cat", GPU).input_ids
    target = embedding.unit(torch.randn(1, 768)).to(GPU)
    assert supports(full_xl.encoder)
    (*_, ours), (*_, theirs) = (run(tokens, target, steps=5, lr=1e-4) for run in (fast, Personalizer(full_xl.encoder)))
    assert difference(ours.conditioning, theirs.conditioning) < 1e-3  # products in TF32 or not


def test_kept_copies_of_both_encoders_are_trained_as_the_plain_loop_trains_them(full_xl: Model) -> None:
    pipe, keep = full_xl.pipeline, dict[str, Any]()
    options: dict[str, Any] = {"projection": full_xl.encoder.text_projection.weight.detach(), "steps": 10}
    for seed, words in enumerate(("the cat", "a painting of a virus monster playing guitar, and the cat")):
        dice = torch.Generator().manual_seed(seed)
        targets = [embedding.unit(torch.randn(1, dim, generator=dice)) for dim in (768, 1280)]
        plain = pipe.encode_prompt(words)[0]
        expected = prompt_embeds(pipe, words, targets, **options)
        found = prompt_embeds(pipe, words, targets, **options, keep=keep)
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            assert difference(found[name].float(), expected[name].float()) < 2e-3  # of fp16
        assert difference(plain.float(), expected["prompt_embeds"].float()) > 0.02
    assert keep.keys() == {"text_encoder", "text_encoder_2"}


def test_xl_is_drawn_by_the_fast_parts_as_by_the_plain(full_xl: Model, quick: Request) -> None:
    nhwc = replace(full_xl, pipeline=copy.deepcopy(full_xl.pipeline))
    registry = Registry(ROOT / "embeddings")
    fast, plain = Service(nhwc, registry, modules.accelerate(nhwc, "fast")), Service(full_xl, registry)
    request = replace(quick, width=512, height=640, aesthetic_steps=0)
    [(ours, _)], [(theirs, _)] = (one.draw(request).images for one in (fast, plain))
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).mean() < 3


@pytest.mark.parametrize(
    "options", [{"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, {"class_embed_type": None}]
)
def test_a_unet_of_another_kind_is_replayed_as_it_is(options: dict[str, Any]) -> None:
    unet = UNet2DConditionModel(**TINY | options).to(GPU).eval().requires_grad_(False)
    fast = modules._Unet(unet, modules._written_out(unet), Recorder(GPU))
    sample, embeds = torch.randn(2, 4, 8, 8, device=GPU), torch.randn(2, 5, 24, device=GPU)
    assert difference(noises(fast, sample, embeds), noises(unet, sample, embeds)) < 1e-3  # products in TF32 or not


def test_every_size_and_number_is_drawn_as_by_the_parts(home: Path, gpu: Model, nhwc: Model, quick: Request) -> None:
    fast = Service(nhwc, Registry(home / "embeddings"), modules.accelerate(nhwc, "fast"))
    plain, first = Service(gpu, fast.registry), drawn(fast, quick)
    for scheduler in SCHEDULERS:
        for wanted in (quick, replace(quick, num_outputs=3), replace(quick, guidance_scale=1)):
            wanted = replace(wanted, scheduler=scheduler, num_inference_steps=5)  # noqa: PLW2901
            require_alike(drawn(fast, wanted), drawn(plain, wanted))
    for width in range(128, 128 + 64 * (CACHED + 2), 64):  # more shapes than are kept
        wanted = replace(quick, width=width)
        require_alike(drawn(fast, wanted), drawn(plain, wanted))
    assert drawn(fast, quick) == first


def test_a_capture_completes_when_its_prediction_is_canceled(home: Path, nhwc: Model, quick: Request) -> None:
    expected = drawn(Service(nhwc, Registry(home / "embeddings"), modules.accelerate(nhwc, "fast")), quick)
    service = Service(nhwc, Registry(home / "embeddings"), modules.accelerate(nhwc, "fast"))
    shapes = [replace(quick, width=width, aesthetic_steps=20, aesthetic_lr=0.1) for width in (192, 256, 320, 384)]
    assert any([cancel(service, request) for request in shapes for _ in range(5)])  # noqa: C419  all of them
    assert drawn(service, quick) == expected


def test_a_failed_capture_does_not_affect_the_next() -> None:
    recorder = Recorder(GPU)
    calls: list[Callable[[], object]] = [int, int, torch.cuda.synchronize]  # the last is not permitted in a capture

    def failing(tensor: torch.Tensor) -> torch.Tensor:
        doubled = tensor * 2
        if calls:
            calls.pop(0)()
        return doubled

    twice, ones = GraphedCallable(failing, recorder), torch.ones(3, device=GPU)
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="capture"):
        twice(ones)
    assert torch.cuda.current_stream() == before
    assert torch.equal(twice(ones), 2 * ones)
    assert torch.equal(GraphedCallable(torch.square, recorder)(3 * ones), 9 * ones)


def test_running_out_of_memory_does_not_change_the_next_prediction(home: Path, nhwc: Model, quick: Request) -> None:
    service = Service(nhwc, Registry(home / "embeddings"), modules.accelerate(nhwc, "fast"))
    large = replace(quick, width=1024, height=768, num_outputs=8)
    torch.cuda.empty_cache()  # of other tests; what is reserved from here on is what the small image needs
    expected = service.draw(quick).images[0][0].tobytes()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            service.draw(large)
        assert service.is_healthy()
        assert service.draw(quick).images[0][0].tobytes() == expected
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(service.draw(large).images) == 8


def test_a_busy_gpu_is_not_checked_for_health() -> None:
    predictor, predictions = Predictor(), Predictions()
    predictor.predictions = predictions
    predictor.service = SimpleNamespace(is_healthy=torch.cuda.synchronize)  # type: ignore[assignment]

    def answers_at_once() -> bool:
        torch.cuda._sleep(4 * 10**9)  # type: ignore[no-untyped-call]  # cycles, some two seconds
        started = time.monotonic()
        return predictor.healthcheck() and time.monotonic() - started < 0.5

    assert predictions.make(answers_at_once)
    torch.cuda.synchronize()


BROKEN = """
import torch
from types import SimpleNamespace
from aesthetic.service import Service

service = SimpleNamespace(model=SimpleNamespace(device=torch.device("cuda")))
assert Service.is_healthy(service)
try:
    torch.zeros(2, device="cuda")[torch.tensor([5], device="cuda")].sum().item()
except RuntimeError:
    assert not Service.is_healthy(service)
else:
    raise AssertionError
"""


def test_a_gpu_that_has_failed_is_not_healthy() -> None:
    subprocess.run([sys.executable, "-c", BROKEN], check=True, cwd=ROOT)


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_offloaded_pipeline_is_personalized(home: Path, service: Service, offload: str) -> None:
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(home / "weights" / MODEL, variant="fp16")
    target = service.registry.load("sac_8plus").vector
    options: dict[str, Any] = {"projection": clip.read_projection(home / "weights" / CLIP), "steps": 3, "lr": 0.01}
    expected = prompt_embeds(pipe, "the cat", target, **options)
    getattr(pipe, offload)()
    found = prompt_embeds(pipe, "the cat", target, **options)
    for name, tensor in found.items():
        assert tensor.device.type == "cuda"
        assert difference(tensor.cpu(), expected[name]) < 1e-3
    pipe(**found, width=128, height=128, num_inference_steps=3)


def test_the_noise_is_the_cpus(gpu: Model, model: Model, quick: Request) -> None:
    for_gpu, for_cpu = (sampling.starting_noise(one, quick, sampling.generators(quick)) for one in (gpu, model))
    assert torch.equal(for_gpu.cpu(), for_cpu.half())


ROUNDING = 4  # of 255, in the mean; unrelated images are ten times as far apart


def drawn(service: Service, request: Request) -> list[Image.Image]:
    return [image for image, _ in service.draw(request).images]


def apart(one: Image.Image, other: Image.Image) -> float:
    return float(np.asarray(ImageChops.difference(one, other)).mean())


def require_alike(ours: list[Image.Image], theirs: list[Image.Image]) -> None:
    assert [apart(*pair) for pair in zip(ours, theirs, strict=True)] == pytest.approx([0] * len(ours), abs=ROUNDING)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_draws_what_the_cpu_draws_except_for_rounding(
    gpu_service: Service, service: Service, quick: Request, scheduler: str
) -> None:
    request = replace(quick, scheduler=scheduler, num_inference_steps=5, num_outputs=2)
    require_alike(drawn(gpu_service, request), drawn(service, request))


@pytest.fixture
def files(model: Model, tmp_path: Path) -> dict[str, Path]:
    return written(model, tmp_path)


def written(model: Model, folder: Path) -> dict[str, Path]:
    """An image, a mask that redraws the left half of it, and a LoRA."""
    paths = {"image": folder / "picture.png", "mask": folder / "mask.png", "lora": folder / "style.safetensors"}
    Image.effect_noise((16, 16), 80).resize((192, 128)).convert("RGB").save(paths["image"])
    mask = Image.new("L", (192, 128))
    mask.paste(255, (0, 0, 96, 128))
    mask.save(paths["mask"])
    lora.write(paths["lora"], lora.changes(model))
    return paths


WAYS: dict[str, dict[str, Any]] = {  # each moves an image by more than ROUNDING
    "a lora": {"lora": True, "lora_scale": 0.5},
    "from a picture": {"image": True, "width": 192, "num_inference_steps": 5, "prompt_strength": 0.6},
    "with a mask": {"image": True, "mask": True, "width": 192, "num_inference_steps": 5, "prompt_strength": 0.8},
    "a long prompt": {"prompt": "(the cat and the dog, :2)" * 12, "long_prompt": True},
    "a weight": {"aesthetic_lr": 0.01, "aesthetic_steps": 10, "aesthetic_weight": 0.5},
    "on the sphere": {"aesthetic_lr": 0.01, "aesthetic_steps": 10, "aesthetic_weight": 0.5, "aesthetic_slerp": True},
    "a sweep": {"aesthetic_lr": 0.01, "aesthetic_sweep": "0,1,3"},
}


def asked(quick: Request, files: dict[str, Path], way: str) -> Request:
    return replace(quick, **WAYS[way] | {name: files[name] for name in files.keys() & WAYS[way].keys()})


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_steer_draws_what_the_cpu_draws(
    gpu_service: Service, service: Service, quick: Request, files: dict[str, Path], way: str
) -> None:
    request = asked(quick, files, way)
    require_alike(drawn(gpu_service, request), drawn(service, request))


def test_a_lora_leaves_nothing_behind(gpu_service: Service, gpu: Model, quick: Request, files: dict[str, Path]) -> None:
    request, layers = asked(quick, files, "a lora"), structure(gpu)
    plain, changed = drawn(gpu_service, quick), drawn(gpu_service, request)
    assert apart(plain[0], changed[0]) > 2 * ROUNDING
    assert drawn(gpu_service, quick) == plain
    assert drawn(gpu_service, request) == changed
    assert structure(gpu) == layers


def test_memory_does_not_grow(home: Path, nhwc: Model, quick: Request, files: dict[str, Path]) -> None:
    """Graphs captured for a LoRA or another size are freed in the end."""
    service = Service(nhwc, Registry(home / "embeddings"), modules.accelerate(nhwc, "fast"))
    changing = [replace(quick, width=width) for width in range(128, 128 + 64 * (CACHED + 2), 64)]
    taken = []
    for _ in range(4):
        for request in [asked(quick, files, "a lora"), *changing]:
            drawn(service, request)
        gc.collect()
        taken.append(torch.cuda.memory_reserved())
    assert taken[-1] <= 1.02 * taken[1]


def test_no_pixel_outside_of_the_mask_changes(gpu_service: Service, quick: Request, files: dict[str, Path]) -> None:
    request = asked(quick, files, "with a mask")
    found, [picture] = init_image.load_init_image(request), drawn(gpu_service, request)
    assert found is not None
    kept = np.asarray(found.mask) == 0
    same = (np.asarray(picture) == np.asarray(found.image)).all(axis=-1)
    assert kept.any()
    assert same[kept].all()
    assert not same[~kept].all()


def test_each_stop_of_a_sweep_equals_the_image_drawn_alone(
    gpu_service: Service, quick: Request, files: dict[str, Path]
) -> None:
    request = asked(quick, files, "a sweep")
    stops = [replace(request, aesthetic_sweep=None, aesthetic_steps=steps) for steps in request.sweep]
    alone = [drawn(gpu_service, stop)[0] for stop in stops]
    require_alike(drawn(gpu_service, request), alone)
    assert apart(alone[0], alone[-1]) > 2 * ROUNDING


@pytest.mark.parametrize("prediction", sd2.SCHEDULERS)
def test_stable_diffusion_2_draws_what_the_cpu_draws(
    home: Path, quick: Request, tmp_path: Path, prediction: str
) -> None:
    snapshot = checkpoint.locate(str(sd2.write(home, tmp_path / "second", prediction=prediction)), home / "weights")
    models = {device: loading.load(snapshot, device) for device in (GPU, CPU)}
    ours, theirs = (
        Service(models[device], Registry(home / "embeddings"), modules.accelerate(models[device], speed))
        for device, speed in ((GPU, "fast"), (CPU, "plain"))
    )
    path = tmp_path / "mine.safetensors"
    embedding.save_aesthetic(path, torch.randn(1, sd2.DIM, generator=torch.Generator().manual_seed(5)), {})
    for scheduler in ("DDIM", "PNDM", "K_EULER_ANCESTRAL"):
        request = replace(quick, aesthetic_embedding_file=path, num_inference_steps=5, scheduler=scheduler)
        require_alike(drawn(ours, request), drawn(theirs, request))


def test_the_same_request_gives_the_same_bytes(gpu_service: Service, quick: Request) -> None:
    first, again = (drawn(gpu_service, replace(quick, num_outputs=2)) for _ in range(2))
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]


def test_a_decoder_that_overflows_in_fp16_is_run_in_fp32(gpu: Model) -> None:
    vae = gpu.pipeline.vae
    latents = torch.randn(1, 4, 16, 16, device="cuda", dtype=torch.float16)
    bias = vae.decoder.conv_in.bias.data.clone()
    vae.decoder.conv_in.bias.data.fill_(60000)  # finite in fp16, and its square is not
    try:
        [image] = sampling.decode(gpu, latents)
        assert image is not None
    finally:
        vae.decoder.conv_in.bias.data.copy_(bias)


ENCODERS: dict[str, dict[str, Any]] = {
    "CLIP ViT-L": random_model.SD15["text_encoder"],
    "OpenCLIP ViT-H": {"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
}


@pytest.fixture(scope="module", params=[*ENCODERS, "demo"])
def encoder(request: pytest.FixtureRequest) -> Any:
    if request.param == "demo":
        return loading.load(checkpoint.locate("demo", ROOT / "weights"), GPU).encoder
    with torch.random.fork_rng([0]):  # without a list, torch warns where there are several GPUs
        torch.manual_seed(0)
        made = CLIPTextModelWithProjection(CLIPTextConfig(**ENCODERS[request.param])).eval().requires_grad_(False)
        for weight in made.parameters():
            if weight.ndim == 1:  # biases and norms at their trivial start would hide mistakes
                weight.add_(0.1 * torch.randn_like(weight))
    return made.cuda()


@pytest.fixture(scope="module")
def fast(encoder: Any, recorder: Recorder) -> FastPersonalizer:
    assert supports(encoder)
    return FastPersonalizer(encoder, recorder)


def words(encoder: Any, *lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks of random tokens, their end and one that occurs twice among them; and an aesthetic."""
    dice, size = torch.Generator().manual_seed(sum(lengths)), encoder.config.vocab_size
    ids = torch.full((len(lengths), 77), size - 1)
    for chunk, length in zip(ids, lengths, strict=True):
        chunk[: length - 1] = torch.randint(size - 2, (length - 1,), generator=dice)
        chunk[length - 2] = ids[0, 1]
    target = torch.randn(1, encoder.config.projection_dim, generator=dice)
    return ids.cuda(), torch.nn.functional.normalize(target).cuda()


@pytest.mark.parametrize("lengths", [(5,), (20,), (32,), (33,), (77,), (77, 12), (77, 77, 40)])
def test_the_written_out_steps_are_the_plain_loops(
    encoder: Any, fast: FastPersonalizer, lengths: tuple[int, ...]
) -> None:
    ids, target = words(encoder, *lengths)
    plain = Personalizer(encoder)(ids, target, steps=10, lr=1e-4)
    exact = Personalizer(copy.deepcopy(encoder).double())(ids, target.double(), steps=10, lr=1e-4)
    for ours, theirs, truth in zip(fast(ids, target, steps=10, lr=1e-4), plain, exact, strict=True):
        # Adam enlarges the rounding of gradients near 0: the plain loop itself is up to 1.4e-5 from that in fp64.
        rounding = difference(theirs.conditioning.double(), truth.conditioning)
        assert difference(ours.conditioning, theirs.conditioning) <= max(1e-5, 4 * rounding)
        assert torch.allclose(ours.similarity, theirs.similarity, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [(20,), (77,), (77, 12)])
def test_the_written_out_steps_are_the_same_bits_each_time(
    encoder: Any, fast: FastPersonalizer, lengths: tuple[int, ...]
) -> None:
    ids, target = words(encoder, *lengths)
    *_, first = fast(ids, target, steps=5, lr=1e-4)
    for run in range(50):
        next(fast(*words(encoder, 97 - lengths[0]), steps=5, lr=0.1))  # then abandoned
        for step in fast(ids, target, steps=5, lr=1e-4):
            _ = step.conditioning if run % 2 else None  # reading it changes nothing
        assert torch.equal(step.conditioning, first.conditioning)
        assert torch.equal(step.similarity, first.similarity)


def test_another_encoder_of_the_same_shape_is_personalized(encoder: Any, fast: FastPersonalizer) -> None:
    other, (ids, target) = copy.deepcopy(encoder), words(encoder, 20)
    other.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5)
    *_, before = fast(ids, target, steps=2, lr=1e-4)
    *_, ours = fast.of(other)(ids, target, steps=2, lr=1e-4)
    *_, theirs = Personalizer(other)(ids, target, steps=2, lr=1e-4)
    *_, again = fast(ids, target, steps=2, lr=1e-4)
    assert difference(ours.conditioning, theirs.conditioning) <= 1e-5
    assert difference(ours.conditioning, before.conditioning) > 1e-3
    assert torch.equal(again.conditioning, before.conditioning)


@pytest.fixture(scope="module")
def demos() -> Iterator[dict[torch.device, Service]]:
    """The demo model in fp32, since fp16 changes its images too much to compare: drawn the fast way, and by the CPU."""
    models = {device: loading.load(checkpoint.locate("demo", ROOT / "weights"), device) for device in (GPU, CPU)}
    models[GPU].pipeline.to(torch.float32)
    fast = modules.accelerate(models[GPU], "fast")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield {GPU: Service(models[GPU], Registry(), fast), CPU: Service(models[CPU], Registry())}


DEMO = Request(prompt="a cat", aesthetic_embedding="night", aesthetic_steps=5, num_inference_steps=6, seed=5)
DEMO = replace(DEMO, scheduler="DPMSolverMultistep", width=192, height=128)


@pytest.mark.parametrize("way", [*WAYS, "without guidance", "several"])
def test_the_demo_draws_what_the_cpu_draws(demos: dict[torch.device, Service], way: str, tmp_path: Path) -> None:
    simple: dict[str, Any] = {"without guidance": {"guidance_scale": 1.0}, "several": {"num_outputs": 3}}
    paths = written(demos[CPU].model, tmp_path)
    request = replace(DEMO, **simple[way]) if way in simple else asked(DEMO, paths, way)
    ours, theirs = (drawn(demos[device], request) for device in (GPU, CPU))
    assert [apart(*pair) for pair in zip(ours, theirs, strict=True)] == pytest.approx([0] * len(ours), abs=0.5)
    assert drawn(demos[GPU], request) == ours
