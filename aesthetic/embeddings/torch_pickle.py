"""What torch.save wrote, one tensor or a few by name, read as if an enemy had written it.

The pickle in such a file is looked at first, and torch gets to see nothing but what was looked at. What the tensors
are for, and whether they will do, is the business of whoever reads them.
"""

import io
import pickle
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from reprlib import repr as brief

import torch

from ..errors import AestheticError

__all__ = ["LEGACY", "LIST", "MAX_BYTES", "TEXTUAL_INVERSION", "ZIP", "ZIP_MAGIC", "kind", "load_pickle", "read_bytes"]

MAX_BYTES = 10**6  # of a file, and of what it unpacks to
MAX_START = 4096  # bytes that tell the kind of a file
# What torch.save needs to write one tensor or parameter down, in a pickle of some 40 instructions. In a longer
# one, or with dictionaries, a few bytes can ask for any amount of time and memory.
MAX_INSTRUCTIONS = 80
INSTRUCTIONS = frozenset(
    {"PROTO", "GLOBAL", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "REDUCE", "BINPERSID", "STOP"}
    | {"BINUNICODE", "BININT", "BININT1", "BININT2", "NEWFALSE", "NEWTRUE", "BINPUT", "BINGET"}
)
GLOBALS = re.compile(r"torch \w+Storage|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)|collections OrderedDict")
# And for the state of a layer, a weight and a bias by name: some 100.
MAX_NAMING = 160
NAMING = frozenset({"EMPTY_DICT", "SETITEM", "SETITEMS", "BUILD"})
SHAREABLE = frozenset({"GLOBAL", "BINUNICODE"})
LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)  # how files of torch before 1.6 start
ZIP_MAGIC = b"PK\x03\x04"
# The kinds of files that callers tell apart, and what the first key of a dictionary tells.
LIST, TEXTUAL_INVERSION, ZIP = "a list", "a textual inversion", "a zip archive"
MLP = "the layers of an MLP, as improved-aesthetic-predictor's"
BESIDE = frozenset({"PROTO", "FRAME", "BINPUT", "MARK", "EMPTY_TUPLE", "REDUCE"})  # what stands before such a key
FIRST_KEYS = {r"string_to_(token|param)|<.+>": TEXTUAL_INVERSION, r"layers\.0\.weight": MLP}


def read_bytes(path: Path, label: str, *, expected: str, error: type[AestheticError]) -> bytes:
    """The bytes of a small file.

    label, expected: what messages call the file, and what they say would be right.

    Raises `error` for a missing or empty file, and for one of more than MAX_BYTES.
    """
    if not path.is_file():
        raise error(f"there is no file {path}; {expected}")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        sizes = f"{path.stat().st_size:,} bytes, and at most {MAX_BYTES:,} are read"
        raise error(f"{label} has {sizes}: it is {kind(path)}; {expected}")
    if not data:
        raise error(f"{label} is empty; {expected}")
    return data


def kind(path: Path) -> str:
    """What a file is, for messages, by its first bytes. The program of a pickle is looked at, and does not run."""
    with path.open("rb") as file:
        start = file.read(MAX_START)
    if start[8:9] == b"{":
        return "a .safetensors file"
    if start.startswith(b"PK"):
        return _zipped(start)
    if start.startswith(LEGACY):
        return "a file of torch before 1.6"
    return "a pickle" if start.startswith(b"\x80") else "of an unknown kind"


def load_pickle(
    label: str, data: bytes, *, expected: str, error: type[AestheticError], by_name: bool = False
) -> object:
    """What is in a file, on the CPU.

    label, expected: what messages call the file, and what they say would be right.
    by_name:         whether that is a dictionary of tensors, and not a tensor alone.

    Raises `error` for anything that torch.save makes of something else, and for what it doesn't make.
    """
    if data.startswith(LEGACY):
        raise error(
            f"{label} was saved by torch before 1.6, or in its format: save it again with today's torch; {expected}"
        )
    try:
        records = _unzip(data)
        [program] = [content for record, content in records.items() if record.endswith("/data.pkl")]
        _check(program, by_name=by_name)
        checked = io.BytesIO()
        with zipfile.ZipFile(checked, "w") as archive:
            for record, content in records.items():
                archive.writestr(record, content)
        checked.seek(0)
        return torch.load(checked, map_location="cpu", weights_only=True)
    except _RefusedError as refusal:
        raise error(f"{label} {refusal}; {expected}") from refusal
    except Exception as damage:  # whatever a damaged file makes of zipfile, pickletools and torch's reader
        raise error(f"{label} is no file of torch.save's, or is damaged; {expected}") from damage


def _zipped(start: bytes) -> str:
    """What the pickle makes that torch.save writes first into a zip archive; ZIP for any other archive."""
    _, name_size, extra_size = struct.unpack("<26sHH", start[:30].ljust(30, b"\0"))
    name, program = start[30 : 30 + name_size], start[30 + name_size + extra_size :]
    return _made(program) if name.endswith(b"/data.pkl") else ZIP


class _RefusedError(Exception):
    """What is wrong with a file, after its name."""


def _unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as records:
        infos = records.infolist()
        if sum(info.file_size for info in infos) > MAX_BYTES:
            raise _RefusedError(f"unpacks to more than {MAX_BYTES // 1000} kB")
        # zipfile also knows LZMA, whose headers may ask for gigabytes of memory.
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
            raise _RefusedError("is compressed in a way that torch.save doesn't use")
        return {info.filename: records.read(info) for info in infos}


def _check(program: bytes, *, by_name: bool) -> None:
    """Raise _RefusedError unless a pickle, which is not run here, is about tensors and nothing else."""
    most, known = (MAX_NAMING, INSTRUCTIONS | NAMING) if by_name else (MAX_INSTRUCTIONS, INSTRUCTIONS)
    shared: set[object] = set()  # places in the pickle's memory, of which what is in them may be used again
    before = ""
    for count, (instruction, argument, _) in enumerate(pickletools.genops(program)):
        name = instruction.name
        if name == "GLOBAL" and not GLOBALS.fullmatch(str(argument)):
            found = dict.fromkeys([_made(program), _object(argument)])  # the same one, of an object alone
            raise _RefusedError(f"holds {' with '.join(found)}, and it was not opened")
        # Tuples of the same tuples twice, and so on, would take for ever to hash, as the keys of dictionaries are.
        is_knotted = name == "BINGET" and argument not in shared
        if name not in known or count >= most or is_knotted:
            raise _RefusedError(f"holds {_made(program)}, and it was not opened")
        if name == "BINPUT":
            shared = shared | {argument} if before in SHAREABLE else shared - {argument}
        before = name


def _made(program: bytes) -> str:
    """What a pickle makes, by its first instructions, which don't run."""
    instructions = ((instruction.name, argument) for instruction, argument, _ in pickletools.genops(program))
    telling = ((name, argument) for name, argument in instructions if name not in BESIDE)
    try:
        name, argument = next(telling)
        if name == "EMPTY_DICT" or argument == "collections OrderedDict":
            return _dictionary(*next(telling))
    except Exception:  # whatever a program that is damaged or cut makes of pickletools
        return "something unknown"
    if name == "GLOBAL" and not GLOBALS.fullmatch(str(argument)):
        return _object(argument)
    return LIST if name == "EMPTY_LIST" else "something other than plain tensors"


def _dictionary(name: str, key: object) -> str:
    if name != "BINUNICODE":
        return "a dictionary"
    known = (kind for pattern, kind in FIRST_KEYS.items() if re.fullmatch(pattern, str(key)))
    return next(known, f"a dictionary that begins with {brief(key)}")


def _object(name: object) -> str:
    return f"a pickled object of {str(name).replace(' ', '.')[:100]!r}"
