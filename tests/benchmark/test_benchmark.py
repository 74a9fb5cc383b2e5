"""What the bench reports. Times are not asserted: they depend on the machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aesthetic.benchmark import benchmark
from aesthetic.benchmark.benchmark import Case
from aesthetic.benchmark.roofline import Rates
from aesthetic.benchmark.stages import PLAIN, TEN
from aesthetic.cli.main import main
from aesthetic.request import Request
from aesthetic.service import Service

STAGES = ["personalization", TEN, "denoising", "decoding", "safety check", "PNG", "whole"]
OURS = "plain"
RATES = Rates(flops={torch.float32: 1e12}, bytes=1e10)


@pytest.fixture(scope="module")
def case(service: Service) -> Case:
    request = Request(prompt="the cat", width=192, height=128, num_inference_steps=3, aesthetic_steps=2, seed=7)
    return benchmark.compare(service.model, service, replace(request, num_outputs=2), RATES, repeats=2)


def test_every_stage_is_measured_both_ways_in_every_repeat(case: Case) -> None:
    assert list(case.seconds) == STAGES
    for ways in case.seconds.values():
        assert list(ways) == [PLAIN, OURS]
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in ways.values())


def test_both_ways_draw_the_same_and_the_same_each_time(case: Case) -> None:
    assert case.difference["conditioning"] <= 1e-5
    assert case.difference["latents"] <= 1e-4
    assert case.repeatable == {PLAIN: True, OURS: True}


def test_a_way_with_differing_repeats_is_named(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = iter(range(100))
    predict = Service.predict
    monkeypatch.setattr(Service, "predict", lambda self, one, to: predict(self, replace(one, seed=next(seeds)), to))
    request = Request(width=128, height=128, num_inference_steps=2, aesthetic_steps=0, seed=7, scheduler="DDIM")
    case = benchmark.compare(service.model, service, request, RATES, repeats=2)
    assert case.repeatable == {PLAIN: True, OURS: False}
    assert f"the same files in every repeat: {PLAIN} yes, {OURS} NO" in benchmark.table(case)


def test_an_ancestral_sampler_draws_the_same(service: Service) -> None:
    request = Request(width=128, height=128, num_inference_steps=6, aesthetic_steps=1, seed=7)
    request = replace(request, scheduler="K_EULER_ANCESTRAL")
    case = benchmark.compare(service.model, service, request, RATES, repeats=1)
    assert case.difference["latents"] <= 1e-4


def test_floors_add_up(case: Case, service: Service) -> None:
    assert case.floor["denoising"] == pytest.approx(0.4 * case.floor[TEN])  # PNDM makes one more call
    parts = ("personalization", "denoising", "decoding", "safety check")
    assert case.floor["whole"] == pytest.approx(sum(case.floor[part] for part in parts))
    assert all(least > 0 for least in case.floor.values())
    encoder = service.model.encoder.text_model
    weights = sum(4 * weight.numel() for weight in encoder.parameters()) - 4 * 600 * 32
    assert case.floor["personalization"] >= (2 + 20 + 1) * weights / RATES.bytes


def test_the_table_has_medians_and_ratios(case: Case) -> None:
    ways = {PLAIN: [0.3, 0.1, 0.2], OURS: [0.1, 0.1, 0.5]}
    lines = benchmark.table(replace(case, seconds={"whole": ways}, floor={"whole": 0.025})).splitlines()
    assert "| whole | 25 | 200 (100 to 300) | 100 (100 to 500) | 2.00 × | 4.0 × |" in lines
    assert lines[0].startswith("2 × 192 × 128, 3 steps of PNDM, 2 aesthetic steps")


def test_the_command_measures_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--sizes", "128x128", "--outputs", "1", "2", "--steps", "3", "--aesthetic_steps", "1", "--repeats", "1"]
    assert main(["bench", "--random", "tiny", *small, "--json", str(tmp_path / "bench.json")]) == 0
    measured = json.loads((tmp_path / "bench.json").read_text())
    assert measured["facts"]["model"] == "random weights, tiny"
    assert {"device", "torch", "cuda", "diffusers", "transformers"} <= measured["facts"].keys()
    assert [case["outputs"] for case in measured["cases"]] == [1, 2]
    assert list(measured["cases"][0]["seconds"]) == STAGES
    shown = capsys.readouterr().out
    assert "float32 TFLOP/s" in shown
    assert shown.count("| whole |") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "--repeats must be 1 or more"),
        (["--outputs", "9"], "num_outputs"),
        (["--json", "x"], ".json"),
        (["--ckpt", "demo"], "give only one of --random and --ckpt"),
    ],
)
def test_bad_options_are_refused_at_once(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--random", "tiny", *flags]) == 1
    assert message in capsys.readouterr().err
