"""Read a LoRA file: low-rank changes to layers of the UNet and of the text encoder, in safetensors.

    W' = W + scale · alpha / rank · up · down

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685. A file names layers
in one of two ways: lora_unet_, lora_te_ and lora_te1_ with underscores (kohya's scripts, OneTrainer, LyCORIS), or with
dots (diffusers, peft), where the part of the model, unet. or text_encoder., may be left out. For Stable Diffusion XL,
kohya's have the original code's names of the UNet's layers.

The file is untrusted: its header is checked before weights are read, and `fit` returns factors for layers that the
model has, without the file's names and notes. diffusers' lora_state_dict is not used, since it loses the alpha of
single attentions in kohya's files, and doesn't convert any other names.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from reprlib import Repr
from typing import Any

import safetensors
from torch import Tensor, nn

from ..embeddings import torch_pickle
from ..errors import CheckpointError, naming_input
from .file_kind import CONVERT, LORA, NUMBERED, TEXTUAL_INVERSION, XL_LORA, kind_of

__all__ = ["Lora", "Pair", "fit", "load_lora"]

MAX_BYTES = 10**9  # of a file; rank 128 for every layer takes a third of that
MAX_HEADER = 2**24  # bytes; trainers note every tag of every image there
MAX_TENSORS = 4096  # 3 for each of about 350 layers are usual
MAX_RANK = 512
LARGEST = 65504.0  # fp16's range
FLOATS = ("F16", "BF16", "F32", "F64")
DTYPES = {"down": FLOATS, "up": FLOATS, "alpha": (*FLOATS, "U8", "I8", "I16", "I32", "I64")}
KEY = re.compile(  # peft may write the adapter's name, usually "default", after the factor's
    r"(?P<layer>.+?)(?:(?:[._]lora\.|\.lora_linear_layer\.|\.lora_)(?P<side>down|up|A|B)(?:\.[^.]+)?\.weight|\.alpha)"
)
SIDES = {"down": "down", "A": "down", "up": "up", "B": "up", None: "alpha"}
# Prefixes of layers' names in the UNet, in the text encoder, and in Stable Diffusion XL's second one.
PREFIXES = (
    ("lora_unet_", "unet.", ""),
    ("lora_te_", "lora_te1_", "text_encoder.", ""),
    ("lora_te2_", "text_encoder_2."),
)
# Parts that the model's own names lack: peft's wrapper, CLIP's of transformers 4, diffusers' processors of 2023.
WRAPPERS = re.compile(r"base_model\.model\.|text_model[._]|\.processor(?=\.)")
PICKLED = {  # kinds that start like a pickle and that a conversion would not make readable
    torch_pickle.LIST: f"a pickled list, perhaps {NUMBERED}",
    torch_pickle.TEXTUAL_INVERSION: TEXTUAL_INVERSION,
    torch_pickle.ZIP: "a zip archive: unpack it, and give the file in it",
}
# By the width of the text encoder. Stable Diffusion XL's second one has 1280, and both together 2048.
MADE_FOR = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}
EXPECTED = "a LoRA in .safetensors was expected, with the names of kohya's scripts, of diffusers or of peft"
NOTED = (
    "unet.",
    "text_encoder.",
    "text_encoder_2.",
    "",
)  # parts in diffusers' metadata and names; save_lora_adapter writes no part
UNREAD = ("alpha_pattern", "use_rslora", "use_dora")  # settings in diffusers' metadata that are refused
OLD_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}  # diffusers' of 2023
# The original code's names in Stable Diffusion XL's UNet, for layers of a resnet and for those outside of all blocks.
BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)")
PLACES = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}
ORIGINAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}

_short = Repr()
_short.maxstring = 100  # kohya's names have up to 80 characters
brief = _short.repr


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """The change of one layer: down [rank, in, ...] and up [out, rank, ...], finite, on the CPU."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank, by which alpha is divided."""
        return int(self.down.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """The changes in a file, by the layers' names in it."""

    pairs: Mapping[str, Pair]
    sha256: str


@naming_input("lora")
def load_lora(path: Path, *, is_xl: bool = False) -> Lora:
    """The LoRA in a file, which may be one for Stable Diffusion XL if `is_xl`.

    Raises CheckpointError, with the kind of the file, for anything else.
    """
    _require_small(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _require_lora(names, list(file.get_slice(names[0]).get_shape()) if names else [], is_xl=is_xl)
            layers = _layers(names)
            for sides in layers.values():
                _require_shapes(file, sides)
            alphas = _noted_alphas(file.metadata() or {})
            pairs = {layer: _pair(layer, file, sides, alphas) for layer, sides in layers.items()}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"the file is damaged, or not a .safetensors file: {brief(str(error))}") from error
    if not any(pair.alpha and _has_values(pair.up) and _has_values(pair.down) for pair in pairs.values()):
        raise CheckpointError("the file changes nothing: every product of its factors is zero")
    with path.open("rb") as data:
        return Lora(pairs=pairs, sha256=hashlib.file_digest(data, "sha256").hexdigest())


@naming_input("lora")
def fit(lora: Lora, unet: Any, *text_encoders: Any) -> tuple[dict[str, Pair], ...]:
    """The changes to the UNet and to text encoders (CLIPTextModel), by the names and in the shapes of their layers.

    Raises CheckpointError unless the model has every layer of the file, in the same shape.
    """
    modules = (unet, *text_encoders)
    widths = [encoder.config.hidden_size for encoder in text_encoders]
    _require_width(lora, sum(widths), widths)
    places = dict(_places(modules))
    parts: tuple[dict[str, Pair], ...] = tuple({} for _ in modules)
    for name, pair in lora.pairs.items():
        part, layer = places.get(WRAPPERS.sub("", name), (None, ""))
        if part is None:
            raise CheckpointError(
                f"the file changes a layer {brief(name)}, which the model doesn't have: it is for another kind of model"
            )
        if layer in parts[part]:
            raise CheckpointError(f"the file changes one layer under two names, the second being {brief(name)}")
        parts[part][layer] = _fitted(name, pair, modules[part].get_submodule(layer).weight)
    return parts


def _require_small(path: Path) -> None:
    """Raise CheckpointError unless `path` is a safetensors file whose size and header are within the limits."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; {EXPECTED}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"the file has {size / 1e9:.1f} GB, and a LoRA has at most {MAX_BYTES // 10**9}")
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    is_whole = start[8:] == b"{" and header <= size - 8
    if not is_whole and start.startswith((b"PK", b"\x80")):  # a header's length may start with these bytes too
        found = PICKLED.get(torch_pickle.kind(path))
        if found is not None:
            raise CheckpointError(f"the file is {found}; {EXPECTED}")
        raise CheckpointError(f"the file is a pickle, as .pt, .ckpt and .bin are: {CONVERT.format('lora.pt')}")
    if not is_whole:
        raise CheckpointError(f"the file is damaged, or not a .safetensors file; {EXPECTED}")
    if header > MAX_HEADER:
        raise CheckpointError(
            f"the file's header has {header / 1e6:.0f} MB, and a LoRA's at most {MAX_HEADER // 10**6}"
        )


def _require_lora(names: list[str], shape: list[int], *, is_xl: bool) -> None:
    """Raise CheckpointError if the names of the tensors, or the shape of the first, show another kind of file."""
    if not 0 < len(names) <= MAX_TENSORS:
        raise CheckpointError(f"the file holds {len(names)} tensors, and a LoRA 2 to {MAX_TENSORS}; {EXPECTED}")
    kind = kind_of(names)
    if kind not in (None, LORA, *[XL_LORA] * is_xl):
        raise CheckpointError(f"the file is {kind}; {EXPECTED}")
    if names == ["aesthetic"]:
        raise CheckpointError("the file is an aesthetic: give it as aesthetic_embedding_file")
    if len(names) == 1 and not KEY.fullmatch(names[0]) and shape and shape[-1] in MADE_FOR:
        raise CheckpointError(f"the file holds one tensor {brief(shape)}, as {TEXTUAL_INVERSION} does; {EXPECTED}")


def _layers(names: list[str]) -> dict[str, dict[str, str]]:
    """The names of down, up and alpha for each layer. Raises CheckpointError for other tensors."""
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        found = KEY.fullmatch(name)
        if found is None:
            raise CheckpointError(f"the file holds {brief(name)}, which is not part of a LoRA; {EXPECTED}")
        sides, side = layers.setdefault(found["layer"], {}), SIDES[found["side"]]
        if side in sides:
            raise CheckpointError(f"the file holds both {brief(sides[side])} and {brief(name)}: one layer, twice")
        sides[side] = name
    for layer, sides in layers.items():
        if not {"down", "up"} <= sides.keys():
            raise CheckpointError(f"the file holds only one of the two factors that change {brief(layer)}")
    return layers


def _require_shapes(file: Any, sides: Mapping[str, str]) -> None:
    """Raise CheckpointError unless the factors of a layer are floats that can be multiplied, and alpha is a number.

    Alpha may be an integer: kohya's svd_merge_lora.py writes the rank.
    """
    facts = {side: file.get_slice(name) for side, name in sides.items()}
    shapes = {side: list(fact.get_shape()) for side, fact in facts.items()}
    for side, fact in facts.items():
        if fact.get_dtype() not in DTYPES[side]:
            raise CheckpointError(
                f"the file holds {brief(sides[side])} as {fact.get_dtype()}; {', '.join(DTYPES[side])} were expected"
            )
    down, up = shapes["down"], shapes["up"]
    is_product = all(len(shape) in (2, 4) and 0 not in shape for shape in (down, up)) and down[0] == up[1]
    if not is_product or math.prod(shapes.get("alpha", [])) != 1:
        raise CheckpointError(
            f"the file holds {brief(sides['down'])} {brief(down)} and {brief(sides['up'])} {brief(up)}: not a LoRA"
        )
    if down[0] > MAX_RANK:
        raise CheckpointError(f"the file holds {brief(sides['down'])} of rank {down[0]}, and {MAX_RANK} is the most")


def _pair(layer: str, file: Any, sides: Mapping[str, str], alphas: Mapping[str, float]) -> Pair:
    found = {side: _finite(name, file.get_tensor(name)) for side, name in sides.items()}
    down, up = found["down"], found["up"]
    if "alpha" in found:
        return Pair(down=down, up=up, alpha=float(found["alpha"]))
    part = next(part for part in NOTED if layer.startswith(part))
    return Pair(down=down, up=up, alpha=alphas.get(part, float(len(down))))


def _has_values(tensor: Tensor) -> bool:
    """Whether not all of it is zero. Tensor.any makes a copy."""
    return any(map(bool, tensor.aminmax()))


def _finite(name: str, tensor: Tensor) -> Tensor:
    least, most = tensor.aminmax()  # without a copy, which could take gigabytes
    if not (least >= -LARGEST and most <= LARGEST):  # True for nan, too
        raise CheckpointError(f"the file holds values in {brief(name)} that are not finite, or not in fp16's range")
    return tensor


def _noted_alphas(notes: Mapping[str, str]) -> dict[str, float]:
    """The alpha of each part's layers in diffusers' metadata. Raises CheckpointError for settings other than that."""
    alphas: dict[str, float] = {}
    try:
        found = json.loads(notes.get("lora_adapter_metadata", "{}"))
        for part in NOTED:
            for name in UNREAD:
                if found.get(part + name):
                    raise CheckpointError(f"the file's notes ask for {part}{name}, which is not supported")
            alpha = found.get(f"{part}lora_alpha")
            if alpha is not None:
                if not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST:  # True for nan, too
                    raise ValueError("not a finite number")
                alphas[part] = float(alpha)
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError("the file's notes (lora_adapter_metadata) are not those that diffusers writes") from error
    return alphas


def _places(modules: Sequence[nn.Module]) -> Iterator[tuple[str, tuple[int, str]]]:
    """Every name that a file may use for a layer, with the part (0: UNet, then text encoders) and the layer's own."""
    for part, module in enumerate(modules):
        for layer in [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]:
            spellings = _spellings(layer)
            if part == 0 and len(modules) > 2:
                spellings.add(_original(layer))
            for prefix, spelling in product(PREFIXES[part], spellings):
                yield prefix + (spelling.replace(".", "_") if prefix.endswith("_") else spelling), (part, layer)


def _spellings(layer: str) -> set[str]:
    """A layer's names in diffusers, today and in 2023."""
    last = layer.rpartition(".")[2]
    return {layer, layer.removesuffix(".0"), layer.removesuffix(last) + OLD_NAMES.get(last, last)}


def _original(layer: str) -> str:
    """The name of a layer of Stable Diffusion XL's UNet in the original code, where a level has three blocks."""
    found = BLOCK.fullmatch(layer)
    if found is None:
        return ORIGINAL.get(layer, layer)
    way, level, kind, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        rest = "op"
    inner = ORIGINAL.get(rest, rest)
    if way == "mid":
        return f"middle_block.{2 * index + PLACES[kind]}.{inner}"
    number = 3 * level + (2 if kind.endswith("samplers") else index)
    block = f"input_blocks.{number + 1}" if way == "down" else f"output_blocks.{number}"
    return f"{block}.{PLACES[kind]}.{inner}"


def _require_width(lora: Lora, cross: int, texts: Sequence[int]) -> None:
    """Raise CheckpointError for a LoRA of a model with text encoders of other widths than `texts`, or another sum."""
    for name, pair in lora.pairs.items():
        is_cross = "attn2" in name and name.endswith(("to_k", "to_v"))
        is_text = "self_attn" in name and name.endswith(("q_proj", "k_proj", "to_q", "to_k"))
        width = pair.down.shape[1]
        own = cross if is_cross else texts[0]
        if (is_cross and width != own) or (is_text and width not in texts):
            raise CheckpointError(
                f"the file is for {MADE_FOR.get(width, 'another model')}, whose text encoder is {width} wide, "
                f"and this model's is {own} wide: it needs a LoRA for {MADE_FOR.get(cross, 'its own kind')}"
            )


def _fitted(name: str, pair: Pair, weight: Tensor) -> Pair:
    """`pair` in the shape of the weight [out, in, ...]: trainers write 1 × 1 convolutions with or without their 1s."""
    down, up = (pair.rank, *weight.shape[1:]), (weight.shape[0], pair.rank, *[1] * (weight.ndim - 2))
    if _trimmed(pair.down.shape) != _trimmed(down) or _trimmed(pair.up.shape) != _trimmed(up):
        raise CheckpointError(
            f"the file changes {brief(name)} by {list(pair.up.shape)} · {list(pair.down.shape)}, and the model's layer "
            f"has the shape {list(weight.shape)}: it is for another model"
        )
    return Pair(down=pair.down.reshape(down), up=pair.up.reshape(up), alpha=pair.alpha)


def _trimmed(shape: Iterable[int]) -> tuple[int, ...]:
    whole = tuple(shape)
    return whole[:2] if all(side == 1 for side in whole[2:]) else whole
