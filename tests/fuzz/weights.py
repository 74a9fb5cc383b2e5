"""Safetensors: aesthetics, LoRAs and whole models with other headers, names, shapes, notes and values."""

import json
import math
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch

from aesthetic.models import checkpoint, loading
from aesthetic.models.file_kind import SIGNS
from tests import lora
from tests.models import single_file
from tests.snapshot import MODEL

from . import pickles
from .kind import Bench, Kind, as_file, names_field
from .mutation import INTEGERS, MAX_BYTES, TEXTS, change_bytes, change_json

__all__ = ["KINDS"]

DTYPES = ("F16", "BF16", "F32", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "C64", "F4", "X")
SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8, "C64": 8}  # bytes; of all others 1
SHAPES: list[Any] = [[], [0], [1], [1, 24], [24], [2, 24], [513, 8], [8, 513], [2, 0, 4], [1] * 70, [2**32, 2**32]]
ADAPTERS = ("[" * 10**5, '{"unet.lora_alpha": 1e999}', '{"lora_alpha": NaN}', '{"use_dora": true}', "3")
NOTES: list[Any] = [{}, {"a": 1}, {"space": "\0" * 99}, {"space": "x" * 10**5}, None, [], "x"]
NOTES += [{"lora_adapter_metadata": text} for text in ADAPTERS]
VALUES = (*DTYPES, *SHAPES, *NOTES, [0, 2**63], [8, 4], [-1, 4], *SIGNS)


def mutate(random: Random, data: bytes) -> bytes:
    """Changed bytes, a changed header, or other tensors in a file that is whole."""
    if len(data) < 10 or data[8:9] != b"{":
        return pickles.mutate(random, data)
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        return _change_file(random, header, data[8 + size :])
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):  # it was no whole file before
        return change_bytes(random, data)


def _change_file(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    choice = random.randrange(8)
    if choice == 0:
        return change_bytes(random, _written(header, body))
    if choice == 1:
        text = change_bytes(random, json.dumps(header).encode())
        return len(text).to_bytes(8, "little") + text + body
    if choice == 2:
        return (random.choice(INTEGERS) % 2**64).to_bytes(8, "little") + _written(header, body)[8:]
    if choice == 3:
        return _written(change_json(random, header, VALUES), body)
    return _whole(random, header, body)


def _whole(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """A file with some tensors renamed, reshaped, converted, left out or added, and the right offsets."""
    notes = header.pop("__metadata__", {})
    tensors = {
        name: (fact["dtype"], fact["shape"], body[slice(*fact["data_offsets"])]) for name, fact in header.items()
    }
    for _ in range(random.choice((1, 1, 2, 8))):
        name = random.choice(list(tensors) or ["aesthetic"])
        dtype, shape, data = tensors.pop(name, ("F32", [1, 24], bytes(96)))
        match random.randrange(7):
            case 0:
                name = _other_name(random, name)
            case 1:
                shape = random.choice(SHAPES[:-1])
            case 2:
                dtype = random.choice(DTYPES)
            case 3:
                shape = [*shape[:-1], random.choice((0, 1, 2, 24, 768, 1024, 8193))]
            case 4:
                data = change_bytes(random, data)
            case 5:
                tensors[_other_name(random, name)] = (dtype, shape, data)
            case 6:
                continue
        tensors[name] = (dtype, shape, data)
    if random.random() < 0.2:
        notes = random.choice(NOTES)
    return _packed(tensors, notes)


def _other_name(random: Random, name: str) -> str:
    parts = random.choice((name.split("."), name.split("_")))
    joint = "." if "." in name else "_"
    return random.choice((
        *TEXTS,
        name + random.choice(TEXTS),
        random.choice(list(SIGNS)) + name,
        joint.join(part for part in parts if random.random() < 0.8),
        name.replace("down", "up"),
        name.replace("lora_unet_", "unet."),
    ))  # fmt: skip


def _packed(tensors: dict[str, tuple[str, list[int], bytes]], notes: Any) -> bytes:
    header: dict[str, Any] = {} if notes is None else {"__metadata__": notes}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        size = math.prod(shape) * SIZES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + size]}
        held = min(size, MAX_BYTES)  # a shape may claim anything
        body += (data * (held // max(1, len(data)) + 1))[:held].ljust(held, b"\0")
    return _written(header, body)


def _written(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def aesthetics(_: Bench) -> list[bytes]:
    """Aesthetics, and other files of one tensor."""
    made = [{"aesthetic": torch.randn(1, 24)}, {"aesthetic": torch.randn(768)}, {"emb_params": torch.randn(1, 24)}]
    return [safetensors.torch.save(one, {"space": "openai/clip-vit-large-patch14"}) for one in made]


def loras(bench: Bench) -> list[bytes]:
    """LoRAs of a few layers with every writer's names, and other files."""
    model = bench.service.model
    every = list(lora.changes(model).items())
    few = dict(Random(0).sample(every, 6))
    with TemporaryDirectory() as folder:
        styles = (lora.kohya, lora.peft, lora.dotted, lora.te1, lora.unnamed, lora.wrapped)
        written = [lora.write(Path(folder) / "x", few, names=names).read_bytes() for names in styles]
    return written + aesthetics(bench)[:1] + pickles.seeds(bench)[-3:]


def checkpoints(bench: Bench) -> list[bytes]:
    """A whole model, its header with hardly any weights, and other files."""
    with TemporaryDirectory() as folder:
        whole = single_file.write(bench.home / "weights" / MODEL, Path(folder) / "x").read_bytes()
    return [whole, *loras(bench)[:2], *aesthetics(bench)[:1], *pickles.seeds(bench)[-2:]]


def load_checkpoint(bench: Bench, data: bytes, folder: Path) -> object:
    """Load a model in a single file."""
    path = folder / "upload.safetensors"
    path.write_bytes(data)
    return loading.load(checkpoint.locate(str(path), bench.home / "weights"), torch.device("cpu"))


FIELD = "aesthetic_embedding_file"
KINDS = [
    Kind(name="safetensors", seeds=aesthetics, mutate=mutate, run=as_file(FIELD), names=names_field(FIELD)),
    Kind(name="LoRAs", seeds=loras, mutate=mutate, run=as_file("lora"), names=names_field("lora")),
    Kind(
        name="checkpoints",
        seeds=checkpoints,
        mutate=mutate,
        run=load_checkpoint,
        names=lambda error: "upload.safetensors" in str(error),
    ),
]
