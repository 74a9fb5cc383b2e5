"""What only a GPU can show: half precision beside single, and the same noise everywhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageChops
from transformers import CLIPModel

from aesthetic import checkpoint, pipeline, prompt, sample
from aesthetic.gradient import Personaliser
from aesthetic.pipeline import Model
from aesthetic.registry import Registry
from aesthetic.request import SCHEDULERS, Request
from aesthetic.service import Service
from tests import original
from tests.original import difference
from tests.test_service import weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]


@pytest.fixture(scope="module")
def gpu(home: Path) -> Model:
    return pipeline.load(checkpoint.locate(None, home / "weights"), torch.device("cuda"))


@pytest.fixture
def gpu_service(home: Path, gpu: Model) -> Iterator[Service]:
    before = {name: weight.clone() for name, weight in weights(gpu).items()}
    yield Service(gpu, Registry(home / "embeddings"))
    assert all(torch.equal(weight, before[name]) for name, weight in weights(gpu).items())


def test_the_pipeline_is_fp16_and_the_master_fp32(gpu: Model) -> None:
    for part in (gpu.pipeline.unet, gpu.pipeline.vae, gpu.pipeline.text_encoder, gpu.pipeline.safety_checker):
        assert {(weight.dtype, weight.device.type) for weight in part.parameters()} == {(torch.float16, "cuda")}
    assert {(weight.dtype, weight.device.type) for weight in gpu.encoder.parameters()} == {(torch.float32, "cuda")}


@pytest.mark.parametrize("steps", [0, 1, 5, 20])
def test_equals_the_original_loop(gpu: Model, clip: CLIPModel, gpu_service: Service, steps: int) -> None:
    tokens = prompt.tokenize(gpu, "the cat").input_ids
    target = gpu_service.registry.read("sac_8plus").vector.cuda()
    *_, last = Personaliser(gpu.encoder)(tokens, target, steps=steps, lr=1e-4)
    theirs = original.conditioning(clip.cuda(), tokens, target, steps=steps, lr=1e-4)
    assert difference(last.conditioning, theirs) <= 1e-5


def test_the_noise_is_the_cpus(gpu: Model, model: Model, quick: Request) -> None:
    for_gpu, for_cpu = (sample.starting_noise(one, quick, sample.generators(quick)) for one in (gpu, model))
    assert torch.equal(for_gpu.cpu(), for_cpu.half())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_draws_what_the_cpu_draws_but_for_rounding(
    gpu_service: Service, service: Service, quick: Request, scheduler: str
) -> None:
    request = replace(quick, scheduler=scheduler, num_outputs=2)
    for (ours, _), (theirs, _) in zip(gpu_service.draw(request).pictures, service.draw(request).pictures, strict=True):
        apart = np.asarray(ImageChops.difference(ours, theirs))
        assert apart.mean() < 4  # of 255; unrelated pictures are ten times as far apart


def test_the_same_request_gives_the_same_bytes(gpu_service: Service, quick: Request) -> None:
    first, second = (gpu_service.draw(replace(quick, num_outputs=2)).pictures for _ in range(2))
    assert [image.tobytes() for image, _ in first] == [image.tobytes() for image, _ in second]


def test_a_decoder_that_overflows_in_fp16_is_run_in_fp32(gpu: Model) -> None:
    vae = gpu.pipeline.vae
    latents = torch.randn(1, 4, 16, 16, device="cuda", dtype=torch.float16)
    bias = vae.decoder.conv_in.bias.data.clone()
    vae.decoder.conv_in.bias.data.fill_(60000)  # finite in fp16, and its square is not
    try:
        [image] = sample.decode(gpu, latents)
        assert image is not None
    finally:
        vae.decoder.conv_in.bias.data.copy_(bias)
