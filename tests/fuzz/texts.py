"""JSON bodies as Cog's server gets them: any values, prompts with weights, mixes and sweeps."""

import base64
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from aesthetic.embeddings.registry import Registry
from aesthetic.errors import AestheticError
from aesthetic.request import FIELDS, RENAMED, Request, base_type
from tests.images.test_user_images import encoded

from .kind import QUICK, Bench, Kind
from .mutation import TEXTS, VALUES, change_bytes, change_json

__all__ = ["KINDS"]

PIECES = ["a cat", "(", ")", "\\(", "\\)", "\\", "[", "]", ":", "1.3", "-1", "2.0001", "1e9", ".", "((a:1.2):1.1)", ","]
PIECES += ["(red:1.3)", "(:1)", "(a:)", ":1)", "(a:.5)", "<|endoftext|>", "<|startoftext|>", "é", "日本語", "🙂", "’"]
PIECES += ["(" * 500, "(a:1)" * 200, "\\(" * 500, "a " * 300, "x" * 1999, "ﷺ" * 60, "\u200d", "a\u0301" * 300, "\r\n"]
MIXES = (":", ":0.7", ":-0.2", ":0", ":1e400", ":nan", ":100", ":-100", ":1e-320", ":١", " ", ",", ", ", ":0.5:0.5")
SWEEPS = ("0", "1", "2", "5", "10", "20", "100", "101", "007", ",", ", ", " ", "-1", "1.5", "²", "١")


def bodies(_: Bench) -> list[bytes]:
    """The defaults, and every input alone."""
    image = "data:image/png;base64," + base64.b64encode(encoded()).decode()
    defaults = {name: spec.default for name, spec in FIELDS.items() if spec.default is not None}
    old = {"n_samples": 1, "scale": 7.5, "ddim_steps": 20, "plms": True}
    files = {name: image for name, spec in FIELDS.items() if base_type(spec) is Path}
    inputs = [defaults, old, files, {}, {"image": image, "mask": image}, {"aesthetic_images": image}]
    return [json.dumps({"input": each}).encode() for each in inputs]


def change_body(random: Random, data: bytes) -> bytes:
    """Another value, input or type; seldom other bytes."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(random, data)
    if random.random() < 0.1 or not isinstance(body, dict) or not isinstance(body.get("input"), dict):
        return change_bytes(random, data)
    inputs = body["input"]
    for name in random.sample([*FIELDS, *RENAMED], k=random.randrange(3)):
        inputs[name] = random.choice(VALUES)
    return json.dumps({"input": change_json(random, inputs) if random.random() < 0.7 else inputs}).encode()


def prompts(_: Bench) -> list[bytes]:
    """Prompts with and without weights."""
    texts = ("a (red:1.3) cat", "a cat, " * 60, "a \\(cat\\)", "", "日本語")
    return [_body(prompt=text, long_prompt=True, aesthetic_text=text) for text in texts]


def change_prompt(random: Random, data: bytes) -> bytes:
    """Pieces of prompts put together, or pieces of Unicode."""
    fields = ("prompt", "negative_prompt", "aesthetic_text")
    made = {name: _text(random, PIECES, json.loads(data)["input"].get(name, "")) for name in fields}
    return _body(**made, long_prompt=random.random() < 0.7)


def mixes(_: Bench) -> list[bytes]:
    """A mix, a sweep and a name."""
    return [
        _body(aesthetic_mix="fantasy:0.7 gloomcore:-0.2"),
        _body(aesthetic_sweep="0,2,5"),
        _body(aesthetic_embedding=""),
    ]


def change_mix(random: Random, data: bytes) -> bytes:
    """Another mix, sweep or name."""
    [(name, text)] = json.loads(data)["input"].items()
    pieces = SWEEPS if name == "aesthetic_sweep" else (*Registry().names(), *MIXES)
    return _body(**{name: _text(random, pieces, text)})


def _text(random: Random, pieces: Sequence[str], text: str) -> str:
    match random.randrange(5):
        case 0:
            at = random.randrange(len(text) + 1)
            return text[:at] + random.choice((*TEXTS, *pieces)) + text[at + random.randrange(9) :]
        case 1:
            return "".join(map(chr, random.choices(range(sys.maxunicode), k=random.choice((1, 9, 1500)))))
        case 2:
            return change_bytes(random, text.encode(errors="replace")).decode(errors="replace")[:3000]
    return "".join(random.choices(pieces, k=random.choice((1, 2, 4, 8, 30))))[:3000]


def _body(**inputs: Any) -> bytes:
    return json.dumps({"input": inputs}).encode()


def predict(quick: dict[str, Any]) -> Callable[[Bench, bytes, Path], object]:
    """What predict.py makes of a body, with files as Cog stores them. A body that is no JSON is Cog's to refuse.

    quick: settings to draw with, in place of those that take minutes.
    """

    def run(bench: Bench, data: bytes, folder: Path) -> object:
        try:
            inputs = json.loads(data)["input"]
            named = {name: _stored(name, value, folder) for name, value in inputs.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        request = Request.from_inputs(**named)
        return bench.service.predict(replace(request, num_outputs=1, **quick), folder)

    return run


def _stored(name: str, value: object, folder: Path) -> object:
    """The value as Cog passes it on: text for a file becomes the path of a file."""
    if name not in FIELDS or base_type(FIELDS[name]) is not Path or not isinstance(value, str):
        return value
    path = folder / name
    start, _, packed = value.partition(";base64,")
    path.write_bytes(base64.b64decode(packed) if start.startswith("data:") else value.encode(errors="replace"))
    return path


def names_any(error: AestheticError) -> bool:
    """Whether an error names an input, or quotes an unknown one."""
    return any(name in str(error) for name in [*FIELDS, *RENAMED]) or str(error).startswith("unknown input ")


def _kind(name: str, seeds: Any, mutate: Any) -> Kind:
    return Kind(
        name=name, seeds=seeds, mutate=mutate, run=predict(QUICK if name != "mixes" else MIXED), names=names_any
    )


MIXED = {key: value for key, value in QUICK.items() if key != "aesthetic_steps"}
KINDS = [
    _kind("JSON", bodies, change_body),
    _kind("prompts", prompts, change_prompt),
    _kind("mixes", mixes, change_mix),
]
