"""Files of code that torch.compile made from a part of the model, for one GPU and one set of shapes.

Compiling takes a minute and loading the result a few seconds, so script/warm compiles once for all later starts. A file
holds code without weights and fits every model of the same shapes. Loading a file runs its code: load only your own.
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
ORIGINS = {"architectures", "dtype", "transformers_version"}  # parts of a configuration that change no computation
OPTIONS: dict[str, Any] = {
    "conv_1x1_as_mm": True,  # matrix products have faster kernels
    "guard_filter_fn": lambda guards: [False] * len(guards),  # `find` checks shapes and versions
    # No autotuning: it takes five seconds at every start, and its choices change the order of additions.
    "deterministic": True,
    "triton.autotune_pointwise": False,
}


class Compiled:
    """The compiled code for this GPU in a folder."""

    def __init__(self, folder: Path) -> None:
        """Load all code that fits the GPU and the versions. The folder need not exist."""
        self._folder = folder / _machine()
        self._code: dict[str, Function] = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                with path.open("rb") as file:
                    self._code[path.stem] = torch.compiler.load_compiled_function(file)
            except Exception as error:  # unpickling a damaged file can raise anything; the plain part still works
                log.warning("%s can't be loaded, and script/warm should write it anew: %s", path, error)

    def __bool__(self) -> bool:
        """Whether any code was loaded."""
        return bool(self._code)

    def find(self, name: str, part: Any, inputs: Sequence[Tensor]) -> Function | None:
        """The code for a part and inputs of these shapes, to be called with both; None if it was not compiled."""
        return self._code.get(_label(name, part, inputs))

    def make(self, name: str, function: Function, part: Any, inputs: Sequence[Tensor]) -> Path:
        """Compile `function` for a part and inputs of these shapes, and write the file.

        If the part has trainable weights, the code computes their gradients too.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        label = _label(name, part, inputs)
        path = self._folder / f"{label}{SUFFIX}"
        trained = any(weight.requires_grad for weight in part.parameters())
        # Later versions of torch enable this by default.
        with torch._dynamo.config.patch(enable_aot_compile=True), torch.set_grad_enabled(trained), _in_order(trained):
            options = dict(OPTIONS)  # torch empties the dict
            compiled: Any = torch.compile(function, fullgraph=True, dynamic=False, options=options)
            made = compiled.aot_compile(((part, *inputs), {}))
        made.save_compiled_function(str(path))  # atomic
        self._code[label] = made
        return path


def _machine() -> str:
    """What compiled code depends on: the GPU, the versions of libraries, and the source of this package."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = "-".join(f"{library}-{version(library)}" for library in ("torch", "diffusers", "transformers"))
    source = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))
    return f"{gpu}-{versions}-python-{platform.python_version()}-{source.hexdigest()[:12]}".replace(" ", "-")


@contextmanager
def _in_order(wanted: bool) -> Iterator[None]:
    """Compile with additions in a fixed order, so that the gradient of a repeated token is the same in each run."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def _label(name: str, part: Any, inputs: Sequence[Tensor]) -> str:
    """The name of a file: the part, and a digest of its configuration and of its inputs' shapes, dtypes and device."""
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()  # diffusers', transformers'
    config = {key: value for key, value in config.items() if not key.startswith("_") and key not in ORIGINS}
    shapes = [[list(one.shape), str(one.dtype), str(part.device)] for one in inputs]
    facts = json.dumps([config, str(part.dtype), shapes], sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
