"""Write .cog/openapi_schema.json, which `cog build` would write, for the server that runs without a container.

Without that file Cog's server checks and describes nothing. openapi.json holds what is the same for every model; the
inputs, their choices and the output come from predict's signature, through Cog's own inspector.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from cog import _inspector
from cog._adt import InputField, Repetition

from aesthetic.errors import SettingError
from aesthetic.writing import whole

HERE = Path(__file__).parent


def openapi_schema() -> dict[str, Any]:
    """The OpenAPI document of predict.py's Predictor, equal to that of `cog build`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Predictor.predict is the name that every Cog knows
        info = _inspector.create_predictor("predict", "Predictor")
    document: dict[str, Any] = json.loads((HERE / "openapi.json").read_text(encoding="utf-8"))
    document["components"]["schemas"] |= {
        "Input": {"title": "Input", "type": "object", "properties": {n: _property(f) for n, f in info.inputs.items()}},
        "Output": info.output.json_type(),
        **{
            name: {"title": name, "description": "An enumeration.", "enum": field.choices} | field.type.json_type()
            for name, field in info.inputs.items()
            if field.choices
        },
    }
    return document


def write() -> None:
    """Write the document where Cog's server looks for it, unless it is there. Raises SettingError if it can't."""
    path, text = HERE.parent / ".cog" / "openapi_schema.json", json.dumps(openapi_schema(), indent=2)
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        path.parent.mkdir(exist_ok=True)
        with whole(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(
            f"Cog reads the inputs from {path}, which can't be written ({error.strerror}): "
            "run script/serve once as a user who may write there, or from a copy of the folder"
        ) from error


def _property(field: InputField) -> dict[str, Any]:
    """The schema of one input, which always has a default and so is never required."""
    found: dict[str, Any] = {"x-order": field.order, "default": field.default}
    if field.choices:
        found["allOf"] = [{"$ref": f"#/components/schemas/{field.name}"}]
    else:
        found |= {"title": field.name.replace("_", " ").title(), **field.type.json_type()}
    if field.type.repetition is Repetition.OPTIONAL:
        found["nullable"] = True
    facts = {
        "description": field.description,
        "minimum": field.ge,
        "maximum": field.le,
        "maxLength": field.max_length,
        "deprecated": field.deprecated,
    }
    return found | {name: value for name, value in facts.items() if value is not None}
