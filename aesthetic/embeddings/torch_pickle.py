"""Read untrusted files of torch.save: one tensor, or a few by name.

The pickle in a file is checked before torch.load sees it, without running it. Callers check the tensors.
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
# The instructions that torch.save writes for one tensor or parameter, about 40. In a longer pickle, or with
# dictionaries, a few bytes can demand any amount of time and memory.
MAX_INSTRUCTIONS = 80
INSTRUCTIONS = frozenset(
    {"PROTO", "GLOBAL", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "REDUCE", "BINPERSID", "STOP"}
    | {"BINUNICODE", "BININT", "BININT1", "BININT2", "NEWFALSE", "NEWTRUE", "BINPUT", "BINGET"}
)
GLOBALS = re.compile(r"torch \w+Storage|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)|collections OrderedDict")
# And for the state of a layer, a weight and a bias by name: about 100.
MAX_NAMING = 160
NAMING = frozenset({"EMPTY_DICT", "SETITEM", "SETITEMS", "BUILD"})
SHAREABLE = frozenset({"GLOBAL", "BINUNICODE"})
LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)  # the start of files of torch before 1.6
ZIP_MAGIC = b"PK\x03\x04"
LIST, TEXTUAL_INVERSION, ZIP = "a list", "a textual inversion", "a zip archive"  # kinds of files
FIRST_KEYS = {  # of a dictionary, and the kind of file that they tell
    r"string_to_(token|param)|<.+>": TEXTUAL_INVERSION,
    r"layers\.0\.weight": "the layers of an MLP, as improved-aesthetic-predictor's",
}
BESIDE = frozenset({"PROTO", "FRAME", "BINPUT", "MARK", "EMPTY_TUPLE", "REDUCE"})  # instructions before a first key


def read_bytes(path: Path, label: str, *, expected: str, error: type[AestheticError]) -> bytes:
    """The bytes of a small file.

    label, expected: for messages, the name of the file and its right content.

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
    """The kind of a file, for messages, by its first bytes. A pickle is not run."""
    with path.open("rb") as file:
        start = file.read(MAX_START)
    if start[8:9] == b"{":
        return "a .safetensors file"
    if start.startswith(b"PK"):  # torch.save writes the pickle first
        name_size, extra_size = struct.unpack("<26x2H", start[:30].ljust(30, b"\0"))
        name, program = start[30 : 30 + name_size], start[30 + name_size + extra_size :]
        return _made(program) if name.endswith(b"/data.pkl") else ZIP
    if start.startswith(LEGACY):
        return "a file of torch before 1.6"
    return "a pickle" if start.startswith(b"\x80") else "of an unknown kind"


def load_pickle(
    label: str, data: bytes, *, expected: str, error: type[AestheticError], by_name: bool = False
) -> object:
    """The content of a file, on the CPU.

    label, expected: for messages, the name of the file and its right content.
    by_name:         whether to accept a dictionary of tensors, not only a single tensor.

    Raises `error` for any other content, and for a file that torch.save did not write.
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
    except Exception as damage:  # zipfile, pickletools and torch raise almost anything for damaged files
        raise error(f"{label} was not written by torch.save, or is damaged; {expected}") from damage


class _RefusedError(Exception):
    """The reason why a file is not opened, without its name."""


def _unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as records:
        infos = records.infolist()
        if sum(info.file_size for info in infos) > MAX_BYTES:
            raise _RefusedError(f"unpacks to more than {MAX_BYTES // 1000} kB")
        # zipfile also reads LZMA, whose headers can demand gigabytes of memory.
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
            raise _RefusedError("is compressed in a way that torch.save doesn't use")
        return {info.filename: records.read(info) for info in infos}


def _check(program: bytes, *, by_name: bool) -> None:
    """Raise _RefusedError unless a pickle, which is not run here, makes only tensors."""
    most, known = (MAX_NAMING, INSTRUCTIONS | NAMING) if by_name else (MAX_INSTRUCTIONS, INSTRUCTIONS)
    shared: set[object] = set()  # places in the pickle's memory whose content may be used again
    before = ""
    for count, (instruction, argument, _) in enumerate(pickletools.genops(program)):
        name = instruction.name
        if name == "GLOBAL" and not GLOBALS.fullmatch(str(argument)):
            found = dict.fromkeys([_made(program), _object(argument)])  # the two are equal for a single object
            raise _RefusedError(f"holds {' with '.join(found)}, and it was not opened")
        # Tuples that hold the same tuple twice, nested, take exponential time to hash as keys of dictionaries.
        is_knotted = name == "BINGET" and argument not in shared
        if name not in known or count >= most or is_knotted:
            raise _RefusedError(f"holds {_made(program)}, and it was not opened")
        if name == "BINPUT":
            shared = shared | {argument} if before in SHAREABLE else shared - {argument}
        before = name


def _made(program: bytes) -> str:
    """The kind of object that a pickle makes, by its first instructions, which are not run."""
    instructions = ((instruction.name, argument) for instruction, argument, _ in pickletools.genops(program))
    telling = ((name, argument) for name, argument in instructions if name not in BESIDE)
    try:
        name, argument = next(telling)
        if name == "EMPTY_DICT" or argument == "collections OrderedDict":
            name, key = next(telling)
            if name != "BINUNICODE":
                return "a dictionary"
            known = (kind for pattern, kind in FIRST_KEYS.items() if re.fullmatch(pattern, str(key)))
            return next(known, f"a dictionary that begins with {brief(key)}")
    except Exception:  # pickletools raises almost anything for a damaged program
        return "something unknown"
    if name == "GLOBAL" and not GLOBALS.fullmatch(str(argument)):
        return _object(argument)
    return LIST if name == "EMPTY_LIST" else "something other than plain tensors"


def _object(name: object) -> str:
    return f"a pickled object of {str(name).replace(' ', '.')[:100]!r}"
