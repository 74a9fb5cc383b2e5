"""Accelerated parts compared with plain ones, without a GPU (see recorder.py); test_gpu.py has one."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageChops
from torch import Tensor

from aesthetic import settings
from aesthetic.acceleration import accelerate, modules
from aesthetic.acceleration.compiled import Compiled, _label
from aesthetic.acceleration.modules import Accelerated
from aesthetic.errors import SettingError
from aesthetic.models.loading import Model
from aesthetic.request import SCHEDULERS, Request
from aesthetic.service import Service
from tests import lora
from tests.acceleration.recorder import EagerRecorder
from tests.original import difference

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launches on a GPU and the waits for it, in order."""
    calls: list[str] = []
    event = SimpleNamespace(synchronize=lambda: calls.append("wait"))
    stream = SimpleNamespace(record_event=lambda: calls.append("launch") or event)  # type: ignore[func-returns-value]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    return calls


@pytest.fixture(scope="module")
def nhwc(model: Model) -> Model:
    """A copy of the model, whose weights may change their memory order."""
    return replace(model, pipeline=copy.deepcopy(model.pipeline))


@pytest.fixture
def fast_service(nhwc: Model, service: Service, launched: list[str]) -> Service:
    return Service(nhwc, service.registry, Accelerated(nhwc, EagerRecorder()))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_accelerated_parts_draw_the_same(
    fast_service: Service, nhwc: Model, service: Service, quick: Request, scheduler: str
) -> None:
    plain, five = Service(nhwc, service.registry), replace(quick, aesthetic_steps=0, num_inference_steps=5)
    for request in (five, replace(five, guidance_scale=1, num_outputs=2)):
        ours, theirs = (one.draw(replace(request, scheduler=scheduler)).images for one in (fast_service, plain))
        assert [image.tobytes() for image, _ in ours] == [image.tobytes() for image, _ in theirs]


def test_python_stays_at_most_two_calls_ahead(fast_service: Service, quick: Request, launched: list[str]) -> None:
    fast_service.draw(replace(quick, num_inference_steps=5, scheduler="DDIM"))
    assert launched == ["launch"] * 3 + ["wait", "launch"] * 2 + ["wait"]


def test_warm_up_captures_every_graph(fast_service: Service, nhwc: Model, quick: Request, launched: list[str]) -> None:
    recorder = EagerRecorder()
    warmed_up = Service(nhwc, fast_service.registry, Accelerated(nhwc, recorder))
    request = replace(quick, num_outputs=2)
    warmed_up.warm_up(request)
    recorded = recorder.recorded
    ours, theirs = (one.draw(request).images for one in (warmed_up, fast_service))
    assert recorder.recorded == recorded > 0
    assert [image.tobytes() for image, _ in ours] == [image.tobytes() for image, _ in theirs]


def test_a_wrapped_part_has_the_attributes_of_the_part(fast_service: Service, nhwc: Model) -> None:
    for name in ("unet", "vae", "text_encoder"):
        stand, part = getattr(fast_service.accelerated.pipeline, name), getattr(nhwc.pipeline, name)
        assert stand is not part
        assert (stand.config, stand.dtype, stand.device) == (part.config, part.dtype, part.device)
        assert type(copy.deepcopy(stand)) is type(part)
        with pytest.raises(AttributeError, match="nonsense"):
            _ = stand.nonsense


def test_the_safety_checker_is_called(fast_service: Service, nhwc: Model, quick: Request) -> None:
    fast_service.accelerated.pipeline.safety_checker.concept_embeds_weights.data -= 3  # so that every image is blocked
    with pytest.raises(Exception, match="blocked every image"):
        fast_service.draw(quick)
    assert len(Service(nhwc, fast_service.registry).draw(quick).images) == 1


def test_only_parts_that_a_lora_changes_are_captured_again(
    fast_service: Service, nhwc: Model, service: Service, quick: Request, tmp_path: Path
) -> None:
    path = tmp_path / "style.safetensors"
    lora.write(path, lora.changes(nhwc))
    request = replace(quick, aesthetic_steps=0, lora=path)
    plain, [(before, _)] = Service(nhwc, service.registry), fast_service.draw(replace(request, lora=None)).images
    [(ours, _)], [(theirs, _)] = (one.draw(request).images for one in (fast_service, plain))
    assert ours.tobytes() == theirs.tobytes()
    assert ours.tobytes() != before.tobytes()
    [(after, _)] = fast_service.draw(replace(request, lora=None)).images
    assert after.tobytes() == before.tobytes()


def test_one_product_for_queries_keys_and_values(nhwc: Model) -> None:
    unet, before = nhwc.pipeline.unet, dict(nhwc.pipeline.unet.named_modules())
    fused = modules.fuse_projections(unet)
    [inputs] = [
        inputs for name, _, inputs in accelerate._examples(nhwc, [Request(width=128, height=128)]) if name == "unet"
    ]
    with torch.no_grad():
        assert difference(modules._noise(fused, *inputs), modules._noise(unet, *inputs)) < 1e-5
    products = [module for name, module in fused.named_modules() if name.endswith((".to_qkv", ".to_kv"))]
    assert len(products) == len(unet.attn_processors)
    assert dict(unet.named_modules()) == before
    assert {id(weight) for weight in unet.parameters()} < {id(weight) for weight in fused.parameters()}
    assert not any(weight.requires_grad for weight in fused.parameters())


class Doubling:
    """Stands for compiled code of a UNet, for one image only, which returns twice the noise."""

    def find(self, name: str, part: Any, inputs: Sequence[Tensor]) -> Callable[..., Tensor] | None:
        """See Compiled.find."""
        assert name in modules.COMPILED
        return (lambda part, *same: 2 * modules._noise(part, *same)) if name == "unet" and len(inputs[0]) == 2 else None


def test_compiled_code_is_used_where_it_fits_and_never_for_a_lora(
    nhwc: Model, service: Service, quick: Request, launched: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "style.safetensors"
    lora.write(path, lora.changes(nhwc))
    compiled: Any = Doubling()
    doubled = Service(nhwc, service.registry, Accelerated(nhwc, EagerRecorder(), compiled))
    assert any(name.endswith(".to_qkv") for name, _ in doubled.accelerated.pipeline.unet.part.named_modules())
    plain, request = Service(nhwc, service.registry), replace(quick, aesthetic_steps=0)
    for wanted, least, most in (
        (request, 2, 255),
        (replace(request, guidance_scale=1), 0, 1),  # one product rounds differently from three
        (replace(request, lora=path), 0, 0),
    ):
        [(ours, _)], [(theirs, _)] = (one.draw(wanted).images for one in (doubled, plain))
        assert least <= np.asarray(ImageChops.difference(ours, theirs)).max() <= most


def test_parts_are_compiled_once(
    nhwc: Model, service: Service, quick: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(accelerate, "_folder", lambda: tmp_path)
    shapes: list[tuple[str, list[int]]] = []

    def make(self: Compiled, name: str, function: Any, part: Any, inputs: Sequence[Tensor]) -> Path:
        with torch.no_grad():
            function(part, *inputs)  # raises if the inputs do not fit
        shapes.append((name, list(inputs[0].shape)))
        self._code[_label(name, part, inputs)] = function
        return tmp_path

    monkeypatch.setattr(Compiled, "make", make)
    accelerate.prepare(nhwc, [quick, replace(quick, num_outputs=2), replace(quick, guidance_scale=1)])
    factor = nhwc.pipeline.vae_scale_factor
    size = [4, quick.height // factor, quick.width // factor]
    drawing = [("unet", [2, *size]), ("vae", [1, *size]), ("unet", [4, *size]), ("unet", [1, *size])]
    assert shapes == [("encoder", [1, nhwc.pipeline.tokenizer.model_max_length]), *drawing]


def test_the_speed_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AESTHETIC_SPEED", raising=False)
    assert (settings.speed(CPU.type), settings.speed(GPU.type)) == ("plain", "graph")
    for speed in settings.SPEEDS:
        monkeypatch.setenv("AESTHETIC_SPEED", speed)
        assert settings.speed(GPU.type) == speed
    with pytest.raises(SettingError, match="AESTHETIC_SPEED=compile needs a CUDA GPU"):
        settings.speed(CPU.type)
    monkeypatch.setenv("AESTHETIC_SPEED", "ludicrous")
    with pytest.raises(SettingError, match="one of plain, graph, compile, not 'ludicrous'"):
        settings.speed(GPU.type)
