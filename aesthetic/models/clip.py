"""The CLIP of a snapshot: the text encoder with its projection, the vision tower, and the name of their space."""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import diffusers
import huggingface_hub
import safetensors
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..errors import CheckpointError, printable
from ..settings import DOWNLOAD, home
from .checkpoint import CLIP, OPENAI_SPACE, Snapshot

__all__ = [
    "Vision",
    "cached_vision",
    "find_projection",
    "find_vision",
    "load_processor",
    "load_tower",
    "load_vision",
    "name_clip_space",
    "project",
    "quiet_loading",
    "read_clip_space",
    "read_projection",
    "variant_for",
]

PROJECTION = "text_projection.weight"
HUB_NAME = re.compile(r"[\w.-]*\w/[\w.-]*\w", re.ASCII)
HUB_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors")
OPENCLIP = 1024  # the width of Stable Diffusion 2.x's text encoder


@dataclass(frozen=True, kw_only=True)
class Vision:
    """CLIP's vision tower in fp32, with its preprocessing."""

    clip_space: str
    _model: Any
    _processor: Any

    def prepare(self, image: Image.Image) -> Tensor:
        """Pixel values [3, size, size] of an RGB image: resized, cropped to its center, normalized."""
        pixels: Tensor = self._processor(image, return_tensors="pt").pixel_values[0]
        return pixels

    @torch.no_grad()
    def features(self, pixels: Sequence[Tensor]) -> Tensor:
        """Raw CLIP image features [n, dim], fp32, of n prepared images."""
        batch = torch.stack(list(pixels)).to(next(self._model.parameters()).device)
        embeds: Tensor = self._model(pixel_values=batch).image_embeds
        return embeds


def read_clip_space(snapshot: Snapshot) -> tuple[str, int]:
    """The name and dimensions of a snapshot's CLIP space, from its files' headers. Raises CheckpointError."""
    projection, clip_space = find_projection(snapshot)
    return clip_space, projection.shape[0]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence warnings of diffusers and transformers, such as those of a CLIP's unused half, and progress bars."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [library.get_verbosity() for library in libraries]
    has_bar = transformers.utils.logging.is_progress_bar_enabled()
    for library in libraries:
        library.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
        if has_bar:
            transformers.utils.logging.enable_progress_bar()


@quiet_loading()
def load_vision(snapshot: Snapshot, device: torch.device) -> Vision:
    """The vision tower alone, to make aesthetics without drawing. Raises CheckpointError for a snapshot without it."""
    _, clip_space = find_projection(snapshot)
    vision = find_vision(snapshot, clip_space, device)
    if vision is None:
        raise CheckpointError(f"{snapshot.name} has no vision tower (image_encoder) to encode images with")
    return vision


@quiet_loading()
def cached_vision(name: str, device: torch.device) -> Vision:
    """The vision tower of a CLIP in Hugging Face's cache, by its name on the hub. Raises CheckpointError without it."""
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name):
        raise CheckpointError(f"clip takes a CLIP's name on the hub, such as {OPENAI_SPACE}, not {brief(name)}")
    remedy = f"run hf download {name} --include {' '.join(map(repr, HUB_FILES))}"
    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except OSError as error:
        raise CheckpointError(f"the CLIP {name} is not in Hugging Face's cache: {remedy}") from error
    for file in HUB_FILES:
        if not any(folder.glob(file)):
            raise CheckpointError(f"the CLIP {name} in {folder} has no {file}, and pickles are not opened: {remedy}")
    try:
        # The projection_dim of the tower's own part may be wrong.
        dim = transformers.CLIPConfig.from_pretrained(folder).projection_dim
        model = load_tower(transformers.CLIPVisionModelWithProjection, folder, projection_dim=dim).to(device)
        return Vision(clip_space=name, _model=model, _processor=load_processor(folder))
    except CheckpointError:
        raise
    except Exception as error:  # transformers and safetensors raise almost anything for damaged files
        problem = printable(str(error)) or type(error).__name__
        raise CheckpointError(f"the CLIP {name} in {folder} can't be read ({problem}): {remedy}") from error


def read_projection(clip: Path | None = None) -> Tensor:
    """The text projection [dim, hidden], fp32, of a CLIP snapshot; None is OpenAI's. Raises CheckpointError."""
    path = (clip or home() / "weights" / CLIP) / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"there is no {path}: run {DOWNLOAD} {CLIP}")
    with safetensors.safe_open(path, framework="pt") as file:
        projection: Tensor = file.get_tensor(PROJECTION)
    return projection.float()


def name_clip_space(projection: Tensor) -> str:
    """The name of the CLIP space of a text projection [dim, hidden], fp32, on the CPU: "clip-" and a digest."""
    return f"clip-{hashlib.sha256(projection.numpy().tobytes()).hexdigest()[:12]}"


def project(text_encoder: Any, projection: Tensor, source: object = "memory") -> Any:
    """A CLIPTextModel with a projection [dim, hidden] on top, as a frozen CLIPTextModelWithProjection.

    source: of the text encoder, for messages.

    Raises CheckpointError if the widths of the two differ.
    """
    width = text_encoder.config.hidden_size
    if width != projection.shape[1]:
        raise CheckpointError(
            f"the text encoder in {source} is {width} wide, and the CLIP projection takes {projection.shape[1]}: "
            "they don't belong together"
        )
    config = copy.deepcopy(text_encoder.config)
    config.projection_dim = projection.shape[0]
    with torch.device("meta"):  # both halves are replaced below
        encoder = transformers.CLIPTextModelWithProjection(config)
    encoder.text_model = text_encoder
    encoder.text_projection = nn.Linear(projection.shape[1], projection.shape[0], bias=False)
    encoder.text_projection.weight.data.copy_(projection)
    return encoder.eval().requires_grad_(False)


def load_tower(kind: Any, folder: Path, **config: Any) -> Any:
    """Half of a CLIP, in fp32, frozen. Raises CheckpointError for missing weights: transformers would fill in noise.

    config: what to change in its configuration.
    """
    tower, report = kind.from_pretrained(
        folder,
        dtype=torch.float32,
        variant=variant_for(folder.glob("*.safetensors"), torch.float32),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **config,
    )
    if lacking := sorted(report["missing_keys"]):
        raise CheckpointError(f"the weights in {folder} lack {lacking[0]} and {len(lacking) - 1} others")
    return tower.requires_grad_(False)


def find_vision(snapshot: Snapshot, clip_space: str, device: torch.device) -> Vision | None:
    """The vision tower of a snapshot's CLIP space; None if it is not on the disk. Raises CheckpointError."""
    own = snapshot.folder / "image_encoder"
    if own.is_dir():
        folder, processor = own, snapshot.folder / "feature_extractor"
    elif snapshot.clip is not None and clip_space == OPENAI_SPACE:
        folder = processor = snapshot.clip
    else:
        return None
    model = load_tower(transformers.CLIPVisionModelWithProjection, folder).to(device)
    return Vision(clip_space=clip_space, _model=model, _processor=load_processor(processor))


def find_projection(snapshot: Snapshot) -> tuple[Tensor, str]:
    """The text projection [dim, hidden] in fp32, and the name of its CLIP space. Raises CheckpointError."""
    for path in sorted((snapshot.folder / "text_encoder").glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            if PROJECTION in file.keys():
                own = file.get_tensor(PROJECTION).float()
                return own, name_clip_space(own)
    _require_openai(snapshot)
    if snapshot.clip is None:
        raise CheckpointError(
            f"{snapshot.name} has no CLIP projection of its own and needs {CLIP}, which is missing or incomplete: "
            f"run {DOWNLOAD} {CLIP}"
        )
    return read_projection(snapshot.clip), OPENAI_SPACE


def _require_openai(snapshot: Snapshot) -> None:
    """Raise CheckpointError for a text encoder whose width shows that its CLIP is not OpenAI's."""
    folder = snapshot.folder / "text_encoder"
    config = folder / "config.json"  # loading raises the error if it is missing
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("hidden_size") == OPENCLIP:
        [file, *_] = [*sorted(folder.glob("*.safetensors")), folder / "model.safetensors"]
        raise CheckpointError(
            f"{snapshot.name} is of the Stable Diffusion 2.x family: its CLIP is OpenCLIP ViT-H/14, whose text "
            f"projection is not in the snapshot, and OpenAI's doesn't fit. Put {PROJECTION} [1024, 1024] of "
            f"laion/CLIP-ViT-H-14-laion2B-s32B-b79K into {file}, under that name: "
            "weights/README.md has the lines that do it"
        )


def load_processor(folder: Path) -> Any:
    """CLIP's image preprocessing with the settings in a folder. Raises CheckpointError."""
    if not (folder / "preprocessor_config.json").is_file():
        raise CheckpointError(f"there is no {folder}/preprocessor_config.json, the settings of CLIP's preprocessing")
    # Pillow's, by name: where torchvision is installed, transformers would resize with that, to other pixels.
    return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)


def variant_for(files: Iterable[Path], dtype: torch.dtype) -> str | None:
    """The variant to load: fp16 if there is one, unless `dtype` is wider and all of its files exist in fp32."""
    paths = set(files)
    half = {path for path in paths if path.name.endswith(".fp16.safetensors")}
    whole = {path.with_name(path.name.replace(".fp16.", ".")) for path in half}
    return "fp16" if half and (dtype == torch.float16 or not whole <= paths) else None
