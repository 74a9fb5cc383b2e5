"""Files of torch.save: published and made ones, with other instructions of pickle, in other zips."""

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from random import Random
from typing import Any

import torch

from .kind import Bench, Kind, as_file, names_field
from .mutation import INTEGERS, TEXTS, change_bytes

__all__ = ["KINDS"]

GLOBALS = ["os system", "builtins eval", "builtins bytearray", "torch load", "collections OrderedDict"]
GLOBALS += [f"torch {name}Storage" for name in ("Float", "Half", "QInt8")]
GLOBALS += [f"torch._utils _rebuild_{name}" for name in ("tensor_v2", "tensor_v3", "parameter", "sparse_tensor")]
# A dictionary whose key takes 2^64 steps to hash, a gigabyte of zeros, and lists in lists.
BOMBS = (
    b"})q\0" + b"h\0\x86q\0" * 64 + b"K\1s.",
    b"cbuiltins\nbytearray\nJ\0\0\0\x40\x85R.",
    b"]" * 10**5 + b"a" * 10**5,
)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


class _Command:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def seeds(_: Bench) -> list[bytes]:
    """The published aesthetics, if they are there, and what torch.save makes of tensors and of other objects."""
    folder = Path(os.environ.get("TEST_DATA") or "none") / "aesthetic_embeddings"
    contents: list[Any] = [torch.randn(24), torch.randn(1, 24).half(), torch.randn(768), torch.zeros(24)]
    contents += [torch.nn.Parameter(torch.randn(24)), torch.zeros(1).expand(10**9), torch.randn(24).to_sparse()]
    contents += [{"<cat>": torch.randn(24)}, OrderedDict(a=torch.randn(24)), [torch.randn(24)], "text", _Command()]
    contents += [torch.arange(24), torch.randn(24, dtype=torch.complex64), torch.randn(24, device="meta")]
    return [path.read_bytes() for path in sorted(folder.glob("*.pt"))] + [
        *map(_saved, contents),
        *(
            _zipped(zipfile.ZIP_STORED, {"archive/data.pkl": b"\x80\2" + bomb, "archive/version": b"3"})
            for bomb in BOMBS
        ),
        _saved(torch.randn(24), _use_new_zipfile_serialization=False),
        pickle.dumps(_Command()),
    ]


def mutate(random: Random, data: bytes) -> bytes:
    """Changed bytes, or the same records with one changed, in a zip whose checksums are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
        if not records or random.random() < 0.15:
            return change_bytes(random, data)
    except Exception:  # it is not a zip, or not one any more
        return change_bytes(random, data)
    name = next((name for name in records if name.endswith("data.pkl") and random.random() < 0.7), None)
    if name is not None:
        records[name] = change_program(random, records[name])
    else:
        _change_records(random, records)
    return _zipped(random.choice(METHODS), records)


def change_program(random: Random, program: bytes) -> bytes:
    """Instructions put in, left out, doubled or moved, or changed bytes."""
    try:
        starts = [at for _, _, at in pickletools.genops(program) if at is not None]
    except Exception:  # pickletools raises almost anything for a damaged program
        return change_bytes(random, program)
    pieces = [program[start:end] for start, end in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(pieces))
        match random.randrange(5):
            case 0:
                pieces.insert(at, instruction(random))
            case 1:
                pieces[at] = instruction(random)
            case 2 if len(pieces) > 1:
                del pieces[at]
            case 3:
                pieces[at:at] = pieces[at : at + random.randrange(4)] * random.choice((1, 2, 40))
            case 4:
                pieces[at] = change_bytes(random, pieces[at])
    return b"".join(pieces)


def instruction(random: Random) -> bytes:
    """Any instruction of pickle, with an argument of its kind."""
    chosen = random.choice(pickletools.opcodes)
    code: bytes = chosen.code.encode("latin-1")
    if chosen.arg is None:
        return code
    name, n = str(chosen.arg.name), int(chosen.arg.n)
    text = random.choice((*TEXTS, *GLOBALS, *map(str, INTEGERS))).encode("utf-8", "replace")
    if n > 0:
        return code + (random.choice(INTEGERS) % (1 << 8 * n)).to_bytes(n, "little")
    if n == pickletools.UP_TO_NEWLINE:
        return code + b"\n".join(text.split(b" ")[: 2 if "pair" in name else 1]) + b"\n"
    size = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(n, 4)
    length = len(text) if random.random() < 0.7 else random.choice(INTEGERS)
    return code + (length % (1 << 8 * size)).to_bytes(size, "little") + text


def _change_records(random: Random, records: dict[str, bytes]) -> None:
    name = random.choice(list(records))
    match random.randrange(5):
        case 0:
            records[name] = change_bytes(random, records[name])
        case 1:
            records[random.choice((*TEXTS, "archive/byteorder")).replace("\0", "")] = records.pop(name)
        case 2:
            records[name.rpartition("/")[0] + "/byteorder"] = random.choice((b"big", b"little", b"", b"odd"))
        case 3:
            records["other/data.pkl"] = records[name]
        case 4:
            records[name] = random.choice((b"", bytes(2 * 10**6)))


def _zipped(method: int, records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name.encode(errors="replace").decode()), content, method)
    return buffer.getvalue()


def _saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


FIELD = "aesthetic_embedding_file"
KINDS = [Kind(name="pickles", seeds=seeds, mutate=mutate, run=as_file(FIELD), names=names_field(FIELD))]
