"""What torch.save wrote, one tensor or a few by name, read as if an enemy had written it.

The pickle in such a file is looked at first, and torch gets to see nothing but what was looked at. What the tensors
are for, and whether they will do, is the business of whoever reads them.
"""

import io
import pickletools
import re
import zipfile

import torch

from .errors import AestheticError

__all__ = ["MAX_BYTES", "read"]

MAX_BYTES = 10**6  # of a file, and of what it unpacks to
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


def read(label: str, data: bytes, *, expected: str, error: type[AestheticError], by_name: bool = False) -> object:
    """What is in a file, on the CPU.

    label, expected: what messages call the file, and what they say would be right.
    by_name:         whether that is a dictionary of tensors, and not a tensor alone.

    Raises `error` for anything that torch.save makes of something else, and for what it doesn't make.
    """
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
        if name in NAMING and not by_name:
            raise _RefusedError("holds a dictionary, perhaps a textual inversion")
        is_foreign = name == "GLOBAL" and not GLOBALS.fullmatch(str(argument))
        # Tuples of the same tuples twice, and so on, would take for ever to hash, as the keys of dictionaries are.
        is_knotted = name == "BINGET" and argument not in shared
        if name not in known or count >= most or is_foreign or is_knotted:
            raise _RefusedError(
                f"holds something other than {'tensors' if by_name else 'a tensor'}, and it was not opened"
            )
        if name == "BINPUT":
            shared = shared | {argument} if before in SHAREABLE else shared - {argument}
        before = name
