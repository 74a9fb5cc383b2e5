"""Code that torch.compile makes of a part of the model, for one GPU and one set of shapes, kept in files.

Compiling takes a minute, loading what was compiled a few seconds: once written (script/warm), it serves every later
start. Such a file holds code and no weights, and fits every model of the same shapes. Code is run as it is: load only
what you have made yourself.
"""

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Compiled"]

log = logging.getLogger(__name__)

Function = Callable[..., Any]  # of a part and of tensors
SUFFIX = ".compiled"
ORIGINS = {"architectures", "dtype", "transformers_version"}  # say where a configuration came from
OPTIONS: dict[str, Any] = {
    "conv_1x1_as_mm": True,  # there are faster kernels for products of matrices
    "guard_filter_fn": lambda guards: [False] * len(guards),  # `find` has looked
    # Nothing is left to be chosen by its time, at every start anew: it took five seconds, and another choice adds up in
    # another order.
    "deterministic": True,
    "triton.autotune_pointwise": False,
}


class Compiled:
    """The compiled code for the GPU that is here, as it is in a folder."""

    def __init__(self, folder: Path) -> None:
        """Load all that fits GPU and versions; there may be none, and no folder."""
        self._folder = folder / _machine()
        self._code: dict[str, Function] = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                with path.open("rb") as file:
                    self._code[path.stem] = torch.compiler.load_compiled_function(file)
            except Exception as error:  # whatever a damaged file makes of pickle: what it was for is still there
                log.warning("%s can't be loaded, and script/warm should write it anew: %s", path, error)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._code)

    def find(self, name: str, part: Any, inputs: Sequence[Tensor]) -> Function | None:
        """The code of the part called `name` for inputs of these shapes, to be called with part and inputs."""
        return self._code.get(_label(name, part, inputs))

    def make(self, name: str, function: Function, part: Any, inputs: Sequence[Tensor]) -> Path:
        """Compile `function` for the part called `name` and for inputs like these, and write it down.

        If the part has weights to be trained, the code gives their gradients too.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        label = _label(name, part, inputs)
        path = self._folder / f"{label}{SUFFIX}"
        trained = any(weight.requires_grad for weight in part.parameters())
        # Later versions of torch have it enabled.
        with torch._dynamo.config.patch(enable_aot_compile=True), torch.set_grad_enabled(trained), _in_order(trained):
            options = dict(OPTIONS)  # torch empties it
            compiled: Any = torch.compile(function, fullgraph=True, dynamic=False, options=options)
            made = compiled.aot_compile(((part, *inputs), {}))
        made.save_compiled_function(str(path))  # whole or not at all
        self._code[label] = made
        return path


def _machine() -> str:
    """What compiled code is good for: this GPU, these versions and this package, of which it holds a part."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = "-".join(f"{library}-{version(library)}" for library in ("torch", "diffusers", "transformers"))
    source = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))
    return f"{gpu}-{versions}-python-{platform.python_version()}-{source.hexdigest()[:12]}".replace(" ", "-")


@contextmanager
def _in_order(wanted: bool) -> Iterator[None]:
    """Whether what is compiled adds up in a fixed order: else a token that occurs often gets its gradient in any."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _label(name: str, part: Any, inputs: Sequence[Tensor]) -> str:
    """The name of a file: of the part, its configuration but for where that came from, and its inputs' shapes.

    Code is for the GPU of one index.
    """
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()  # diffusers', transformers'
    config = {key: value for key, value in config.items() if not key.startswith("_") and key not in ORIGINS}
    shapes = [[list(one.shape), str(one.dtype), str(part.device)] for one in inputs]
    facts = json.dumps([config, str(part.dtype), shapes], sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
