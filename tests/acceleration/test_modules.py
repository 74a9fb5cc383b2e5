"""Accelerated parts compared with plain ones, without a GPU (see recorder.py); test_gpu.py has one."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aesthetic import settings
from aesthetic.acceleration import modules
from aesthetic.acceleration.modules import Accelerated
from aesthetic.errors import SettingError
from aesthetic.models.loading import Model
from aesthetic.request import SCHEDULERS, Request
from aesthetic.service import Service
from tests import lora
from tests.acceleration.recorder import EagerRecorder

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
def fast_service(nhwc: Model, service: Service, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(modules, "Recorder", lambda _: EagerRecorder())
    monkeypatch.setattr(
        modules, "_written_out", lambda _: None
    )  # Triton's interpreter is slow: see test_written_out.py
    return Service(nhwc, service.registry, modules.accelerate(nhwc, "fast"))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_accelerated_parts_draw_the_same(
    fast_service: Service, nhwc: Model, service: Service, quick: Request, scheduler: str
) -> None:
    plain, five = Service(nhwc, service.registry), replace(quick, aesthetic_steps=0, num_inference_steps=5)
    for request in (five, replace(five, guidance_scale=1, num_outputs=2)):
        ours, theirs = (one.draw(replace(request, scheduler=scheduler)).images for one in (fast_service, plain))
        assert [image.tobytes() for image, _ in ours] == [image.tobytes() for image, _ in theirs]


def test_a_gpu_that_does_not_run_triton_replays_the_parts_as_they_are(
    nhwc: Model, service: Service, quick: Request, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "runs_triton", lambda _: False)
    recorder = EagerRecorder()
    accelerated = Accelerated(nhwc, recorder)
    accelerated.compile()  # nothing
    ours, theirs = (Service(nhwc, service.registry, one).draw(quick).images for one in (accelerated, None))
    assert recorder.recorded > 0
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


def test_nothing_is_accelerated_at_speed_plain(fast_service: Service, service: Service, quick: Request) -> None:
    assert modules.accelerate(service.model, "plain") is None
    for speed, one in (("plain", service), ("fast", fast_service)):
        [(_, recipe)] = one.draw(quick).images
        assert (one.speed, recipe.model["speed"]) == (speed, speed)
        weight = one.model.pipeline.unet.conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == (speed == "fast")


def test_the_speed_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AESTHETIC_SPEED", raising=False)
    assert (settings.speed(CPU.type), settings.speed(GPU.type)) == ("plain", "fast")
    for speed in settings.SPEEDS:
        monkeypatch.setenv("AESTHETIC_SPEED", speed)
        assert settings.speed(GPU.type) == speed
    with pytest.raises(SettingError, match="AESTHETIC_SPEED=fast needs a CUDA GPU"):
        settings.speed(CPU.type)
    monkeypatch.setenv("AESTHETIC_SPEED", "ludicrous")
    with pytest.raises(SettingError, match="one of plain, fast, not 'ludicrous'"):
        settings.speed(GPU.type)
