"""predict's signature, the schema made from it, cog.yaml, Request and the table of inputs agree."""

import dataclasses
import inspect
import json
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
import yaml

import predict
from aesthetic import request
from aesthetic.cancellation import Predictions
from aesthetic.embeddings.registry import Registry
from aesthetic.errors import RequestError, SettingError
from aesthetic.request import FIELDS, RENAMED, Request, base_type
from aesthetic.service import Service
from predict import Predictor
from script import schema
from tests.canceling import Asking
from tests.conftest import TEST_DATA
from tests.snapshot import ROOT

ORDER = [
    "prompt",
    "negative_prompt",
    "aesthetic_embedding",
    "aesthetic_steps",
    "aesthetic_lr",
    "aesthetic_embedding_file",
    "aesthetic_images",
    "image",
    "mask",
    "prompt_strength",
    "width",
    "height",
    "num_outputs",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "seed",
    "disable_safety_checker",
    "output_format",
    "output_quality",
    "aesthetic_sweep",
    "aesthetic_until",
    "aesthetic_mix",
    "aesthetic_weight",
    "aesthetic_slerp",
    "aesthetic_text",
    "aesthetic_text_angle",
    "aesthetic_text_negative",
    "long_prompt",
    "lora",
    "lora_scale",
    "n_samples",
    "scale",
    "ddim_steps",
    "plms",
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return schema.openapi_schema()


@pytest.fixture(scope="module")
def inputs(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]["Input"]["properties"]
    return found


def test_inputs_are_in_the_order_of_the_form(inputs: dict[str, Any]) -> None:
    assert list(inputs) == ORDER
    assert [field["x-order"] for field in inputs.values()] == list(range(len(ORDER)))


@pytest.mark.parametrize("name", ORDER)
def test_bounds_and_defaults_are_the_requests(document: dict[str, Any], inputs: dict[str, Any], name: str) -> None:
    field = inputs[name]
    own = FIELDS[RENAMED.get(name, name)]
    assert field["default"] == (None if field.get("deprecated") else own.default)
    if name == "plms":
        return
    assert (field.get("minimum"), field.get("maximum")) == (own.metadata.get("ge"), own.metadata.get("le"))
    assert field.get("maxLength") == own.metadata.get("max_length")
    choices = document["components"]["schemas"].get(name, {}).get("enum")
    if name == "aesthetic_embedding":
        assert choices == list(Registry(ROOT / "embeddings").entries)
    else:
        assert choices == (list(own.metadata["choices"]) if "choices" in own.metadata else None)


def test_descriptions_are_the_requests(inputs: dict[str, Any]) -> None:
    for name, field in inputs.items():
        description = field["description"]
        if name not in RENAMED:
            assert description == FIELDS[name].metadata["help"]
        elif name != "plms":
            assert description == f"Old name of {RENAMED[name]}."
        assert description.endswith(".")
        assert len(description) < 250


def test_the_table_of_inputs_is_the_requests(inputs: dict[str, Any]) -> None:
    text = (ROOT / "script" / "README.md").read_text(encoding="utf-8")
    assert table(inputs) in text, f"script/README.md must hold this table:\n{table(inputs)}"


def table(inputs: dict[str, Any]) -> str:
    """The inputs in the form's order, as a Markdown table."""
    rows = ["| input | type | range | default | what it does |", "|---|---|---|---|---|"]
    for name, field in inputs.items():
        spec = FIELDS[RENAMED.get(name, name)]
        kind, values = ("bool", "") if name == "plms" else (base_type(spec).__name__, span(spec))
        default = {None: "blank", "": ""}.get(field["default"], json.dumps(field["default"]).strip('"'))
        rows.append(f"| `{name}` | {kind} | {values} | {default} | {field['description']} |")
    return "\n".join(rows).replace("| Path |", "| file |")


def span(spec: "dataclasses.Field[Any]") -> str:
    """The values that a field takes."""
    limits = spec.metadata
    if "ge" in limits:
        return f"{limits['ge']:g} to {limits['le']:.10g}"
    if "max_length" in limits:
        return f"≤ {limits['max_length']} characters"
    if spec.name in ("width", "height"):
        return "128 to 1536, in steps of 64"
    choices = Registry(ROOT / "embeddings").entries if spec.name == "aesthetic_embedding" else limits.get("choices", ())
    return ", ".join(f"`{choice}`" for choice in choices)


def test_only_the_old_names_are_deprecated(inputs: dict[str, Any]) -> None:
    old = [name for name, field in inputs.items() if field.get("deprecated")]
    assert old == ["n_samples", "scale", "ddim_steps", "plms"]


def test_blank_is_allowed_where_there_is_no_default(inputs: dict[str, Any]) -> None:
    for field in inputs.values():
        assert (field["default"] is None) == field.get("nullable", False)


def test_the_document_is_complete(document: dict[str, Any]) -> None:
    """Every reference leads somewhere, and the fixed parts are Cog's (pkg/schema/openapi.go)."""
    schemas = document["components"]["schemas"]
    references: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            references.update(value for key, value in node.items() if key == "$ref")
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert {reference.rpartition("/")[2] for reference in references} <= schemas.keys()
    assert schemas["Output"] == {"title": "Output", "type": "array", "items": {"type": "string", "format": "uri"}}
    assert list(document["paths"]) == ["/", "/health-check", "/predictions", "/predictions/{prediction_id}/cancel"]
    assert "required" not in schemas["Input"]
    assert schemas["width"]["type"] == "integer"
    assert schemas["scheduler"] == {
        "title": "scheduler",
        "description": "An enumeration.",
        "enum": list(request.SCHEDULERS),
        "type": "string",
    }


def test_inputs_are_plain_literals() -> None:
    """Cog's static parser loses whatever is computed: see predict.py."""
    import ast

    tree = ast.parse((ROOT / "predict.py").read_text(encoding="utf-8"))
    constants = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}  # type: ignore[attr-defined]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Input"]
    assert len(calls) == len(ORDER)
    for call in calls:
        assert not call.args
        for keyword in call.keywords:
            if isinstance(keyword.value, ast.Name):
                assert keyword.arg == "choices"
                assert keyword.value.id in constants
            else:
                ast.literal_eval(keyword.value)


def test_predict_is_not_decorated() -> None:
    assert inspect.isfunction(Predictor.predict)
    assert not hasattr(Predictor.predict, "__wrapped__")


def test_cog_yaml_fits_its_schema_and_the_files() -> None:
    config = yaml.safe_load((ROOT / "cog.yaml").read_text())
    assert config["predict"] == "predict.py:Predictor"
    assert (ROOT / config["build"]["python_requirements"]).is_file()
    path = TEST_DATA / "cog" / "config_schema_v1.0.json"
    if not path.is_file():
        pytest.skip(f"the schema of cog.yaml is not in {path.parent}")
    jsonschema.validate(config, json.loads(path.read_text()))


def test_the_image_has_the_cog_of_the_requirements() -> None:
    """Cog drops its own lines from the requirements, and takes the latest unless cog.yaml says otherwise."""
    config = yaml.safe_load((ROOT / "cog.yaml").read_text())
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {f"{name}=={config['build']['sdk_version']}" for name in ("cog", "coglet")} <= set(lines)


def test_every_requirement_is_pinned() -> None:
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            requirement = line.partition("#")[0].strip()
            assert not requirement or "==" in requirement


def test_weights_are_not_kept_out_of_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = ("weights/stable", "weights/clip", "weights/demo", "embeddings")
    assert not any(line.startswith(kept) for line in ignored)
    assert Path(ROOT / "weights" / "manifest.json").is_file()


def test_setup_warms_up_for_the_forms_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    warmed_up: list[Request] = []
    monkeypatch.setattr(predict, "COGLET", tmp_path / "coglet" / "predictions")
    monkeypatch.setattr(Service, "load", lambda: SimpleNamespace(warm_up=warmed_up.append))
    monkeypatch.setattr(tempfile, "gettempdir", tempfile.gettempdir)  # setup changes it
    Predictor().setup()
    assert warmed_up == [Request()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("made", "mode"), [("coglet/predictions", 0o755), ("coglet", 0o755), ("coglet", 0o700)])
def test_a_folder_of_another_user_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, made: str, mode: int
) -> None:
    monkeypatch.setattr(Service, "load", lambda: 1 / 0)
    with tempfile.TemporaryDirectory() as folder:  # which others may look into, unlike pytest's
        Path(folder).chmod(0o755)
        (Path(folder) / made).mkdir(mode=mode, parents=True)
        monkeypatch.setattr(predict, "COGLET", Path(folder) / "coglet" / "predictions")
        os.seteuid(65534)
        try:
            with pytest.raises(SettingError, match=f"{made} belongs to root: every prediction would fail"):
                Predictor().setup()
        finally:
            os.seteuid(0)


def plant_link(lost: Path, others: Path) -> None:
    lost.symlink_to(others)


def plant_folder(lost: Path, _: Path) -> None:
    lost.mkdir()
    (lost / "precious").touch()
    os.chown(lost, 65534, 65534)


def plant_link_above(lost: Path, others: Path) -> None:
    lost.parent.rmdir()
    lost.parent.symlink_to(others)
    os.lchown(lost.parent, 65534, 65534)


@pytest.mark.parametrize("plant", [plant_link, plant_folder, plant_link_above])
def test_files_of_others_in_place_of_a_lost_temporary_folder_are_left_alone(
    tmp_path: Path, plant: Callable[..., None]
) -> None:
    if os.geteuid() != 0 and plant is not plant_link:
        pytest.skip("only root can make folders of another user")
    predictor, others = Predictor(), tmp_path / "others"
    others.mkdir()
    (others / "precious").touch()
    predictor.temporary = tmp_path / "server" / "aesthetic-lost"
    predictor.temporary.parent.mkdir()
    plant(predictor.temporary, others)
    before = sorted(tmp_path.rglob("precious"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "gettempdir", predictor._temporary_folder)
        folder = predictor._fresh_folder([])
        assert folder.parent == Path(tempfile.gettempdir())  # the new one is kept
    assert sorted(tmp_path.rglob("precious")) == before
    assert not folder.resolve().is_relative_to(others)
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_failing_gpu_fails_the_health_check(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = Predictor()
    predictor.service, predictor.predictions = service, Predictions()
    assert predictor.healthcheck()

    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "ones", fail)
    assert predictor.predictions.make(predictor.healthcheck)  # a prediction is running: the GPU is not asked
    assert not predictor.healthcheck()
    assert "illegal memory access" in caplog.text


def test_a_full_gpu_is_healthy(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "ones", fail)
    assert service.is_healthy()
    assert not caplog.text


def test_only_unexpected_errors_log_a_traceback(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    predictor = Predictor()
    predictor.service, predictor.predictions = service, Predictions()
    monkeypatch.setattr(predictor, "_fresh_folder", lambda *_: tmp_path)
    given: dict[str, Any] = {name: FIELDS[name].default if name in FIELDS else None for name in ORDER}
    with pytest.raises(RequestError):
        predictor.predict(**given | {"prompt": None})
    assert "Traceback" not in caplog.text
    monkeypatch.setattr(Service, "predict", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predictor.predict(**given)
    assert "Traceback" in caplog.text


def test_an_error_after_canceling_is_not_logged_as_a_failure(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    predictor, begun, go_on = Predictor(), threading.Event(), threading.Event()
    predictor.service, predictor.predictions = service, Predictions()

    def fail(*_: object) -> None:
        begun.set()
        go_on.wait(30)
        raise FileNotFoundError

    monkeypatch.setattr(Service, "predict", fail)
    asking = Asking(lambda: predictor.predictions.make(predictor._draw, {}, tmp_path))
    assert begun.wait(30)
    asking.cancel()
    assert asking.wait() == "canceled"
    go_on.set()
    predictor.predictions.make(int)
    assert "Traceback" not in caplog.text
