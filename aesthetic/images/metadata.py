"""Image files with the recipe that made them: written, and read back.

Each file has two texts about its one image: `parameters`, in the format of the Stable Diffusion web UIs, and
`aesthetic`, a Recipe as JSON. Image i of a batch has seed + i and one output there. Neither text holds a time or a
path, so that the same request gives the same bytes. A PNG stores them as text chunks; WebP and JPEG store `parameters`
as the user comment in Exif, as the web UIs do, and the recipe as the image description.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from PIL import ExifTags, Image, PngImagePlugin

from .. import __version__
from ..errors import ImageError, RequestError
from ..request import SCHEDULERS, Request
from ..writing import whole

__all__ = ["Recipe", "encode", "encode_sheet", "read_recipe", "write"]

KEY = "aesthetic"
UTF_16 = b"UNICODE\0"  # the start of a comment in Exif
PILLOW = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}  # Pillow's names of the formats
SOURCES = ("name", "mix", "file", "pictures")  # of an aesthetic
VERSIONS = {"aesthetic": __version__} | {name: version(name) for name in ("torch", "diffusers", "transformers")}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that made an image.

    request:   the fields of its Request, without files.
    model:     name, revision on the hub, and precision.
    aesthetic: name, source (one of SOURCES), sha256; empty without an aesthetic.
    files:     the sha256 of the given ones of image, mask and lora, by these names.
    versions:  of this code and of the libraries that decide the result.
    """

    request: Mapping[str, Any]
    model: Mapping[str, str]
    aesthetic: Mapping[str, str]
    versions: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, request: Request, *, model: Mapping[str, str], aesthetic: Mapping[str, str], files: Mapping[str, str]
    ) -> Self:
        """The recipe of a request for one image, with a seed; a named aesthetic is written into the request, too."""
        if aesthetic.get("source") == "name":
            request = replace(request, aesthetic_embedding=aesthetic["name"])
        kept = {name: value for name, value in asdict(request).items() if not isinstance(value, Path)}
        return cls(request=kept, model=model, aesthetic=aesthetic, files=files, versions=VERSIONS)

    def settings(self) -> Request:
        """The request, without the files. Raises RequestError for values that no recipe of this version has."""
        try:
            request = Request(**self.request)
        except TypeError as error:
            raise RequestError(f"the recipe is not one of this version's: {error}") from error
        if request.seed is None:
            raise RequestError("the recipe names no seed")
        if request.num_outputs != 1 or request.sweep:
            raise RequestError("the recipe is of more than one image")
        return request

    def rebuild(self, aesthetic_embedding_file: Path | None = None, **files: Path) -> Request:
        """The request that draws the same image.

        aesthetic_embedding_file: the file that the aesthetic came from, or for an aesthetic from images the one that
        `aesthetic embed` makes of them.
        files: those of `Recipe.files`, by the same names.

        Raises RequestError as `settings` does, and for a missing or another file.
        """
        for name, sha256 in self.files.items():
            if name not in files:
                raise RequestError(f"the {name} came from a file, sha256 {sha256}: give the file")
            _require_same(files[name], sha256)
        request, source = replace(self.settings(), **files), self.aesthetic.get("source", "name")  # type: ignore[arg-type]
        if source in ("name", "mix"):
            return request
        if aesthetic_embedding_file is None:
            raise RequestError(f"the aesthetic came from {source}, sha256 {self.aesthetic['sha256']}: give the file")
        if source == "file":
            _require_same(aesthetic_embedding_file, self.aesthetic["sha256"])
        return replace(request, aesthetic_embedding_file=aesthetic_embedding_file)


def _require_same(path: Path, sha256: str) -> None:
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    if own != sha256:
        raise RequestError(f"{path} has the sha256 {own}, and the image was drawn with {sha256}")


def encode(image: Image.Image, recipe: Recipe) -> bytes:
    """The file of an image with its recipe, in the format that the request asks for."""
    parameters, facts = _parameters(recipe), json.dumps(asdict(recipe), ensure_ascii=False, sort_keys=True)
    if recipe.request["output_format"] == "png":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("parameters", parameters)
        texts.add_text(KEY, facts)
        return _encode(image, recipe.request, pnginfo=texts)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = facts.encode()
    # Exif gives the comment the type UNDEFINED. Pillow writes bytes as BYTE, which piexif and exiv2 read as numbers,
    # and a list of anything but numbers, text and bytes as UNDEFINED. The text has the byte order of the Exif block,
    # which Pillow writes big-endian: exiv2 expects them to agree.
    comment = bytearray(UTF_16 + parameters.encode("utf-16-be"))
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = [comment]
    return _encode(image, recipe.request, exif=exif)


def encode_sheet(image: Image.Image, request: Request) -> bytes:
    """The file of an image without a recipe, in the format that the request asks for."""
    return _encode(image, asdict(request))


def write(path: Path, image: Image.Image, recipe: Recipe) -> None:
    """Write an image with its recipe; the suffix of `path` is the format that the request asks for."""
    with whole(path) as unfinished:
        unfinished.write_bytes(encode(image, recipe))


def _encode(image: Image.Image, request: Mapping[str, Any], **texts: Any) -> bytes:
    # Run-length encoding takes about half of the default's time, for files that are hardly larger: after PNG's filters,
    # colors have runs and few other repetitions.
    options = {"compress_type": zlib.Z_RLE, "compress_level": 1, "quality": request["output_quality"]}
    file = io.BytesIO()
    image.save(file, PILLOW[request["output_format"]], **options, **texts)
    return file.getvalue()


def read_recipe(path: Path) -> Recipe:
    """The recipe in an image file. Raises ImageError for a file without a readable one."""
    try:
        with Image.open(path, formats=list(PILLOW.values())) as image:
            facts = json.loads(
                image.info[KEY]
                if image.format == "PNG"
                else image.getexif()[ExifTags.Base.ImageDescription].encode("latin-1")
            )
        if facts["aesthetic"] and facts["aesthetic"]["source"] not in SOURCES:
            raise ValueError("no such source")
        files = _strings(facts.get("files", {}))
        if not files.keys() <= {"image", "mask", "lora"}:
            raise ValueError("no such file")
        return Recipe(
            files=files,
            request=dict(facts["request"]),
            model=_strings(facts["model"], required=("name", "revision", "precision")),
            aesthetic=_strings(facts["aesthetic"], ("name", "source", "sha256") if facts["aesthetic"] else ()),
            versions=_strings(facts["versions"]),
        )
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except Exception as error:  # the file is untrusted
        raise ImageError(
            f"{path.name} has no recipe: it was not made by this service, or its metadata was stripped"
        ) from error


def _strings(facts: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, str]:
    """`facts` if all of them are printable text. Raises ValueError or KeyError."""
    if not all(isinstance(text, str) and (name + text).isprintable() for name, text in facts.items()):
        raise ValueError("not text")
    return {**{name: facts[name] for name in required}, **facts}


def _parameters(recipe: Recipe) -> str:
    """Prompt, negative prompt, and a line of settings, as in the web UIs."""
    request, aesthetic = recipe.request, recipe.aesthetic
    settings: dict[str, object] = {
        "Steps": request["num_inference_steps"],
        "Sampler": SCHEDULERS[request["scheduler"]].web_ui_name,
        "CFG scale": request["guidance_scale"],
        "Seed": request["seed"],
        "Size": f"{request['width']}x{request['height']}",
        "Model": recipe.model["name"],
        "Model revision": recipe.model["revision"],
    }
    if request["ddim_eta"]:
        settings["Eta"] = request["ddim_eta"]
    if "image" in recipe.files:
        settings["Denoising strength"] = request["prompt_strength"]
    if "lora" in recipe.files:
        settings["LoRA sha256"] = recipe.files["lora"]
        settings["LoRA scale"] = request["lora_scale"]
    if aesthetic:
        settings |= {
            "Aesthetic embedding": aesthetic["name"],
            "Aesthetic sha256": aesthetic["sha256"],
            "Aesthetic steps": request["aesthetic_steps"],
            "Aesthetic LR": request["aesthetic_lr"],
        }
        if request["aesthetic_weight"] != 1:
            settings["Aesthetic weight"] = request["aesthetic_weight"]
            settings["Aesthetic slerp"] = request["aesthetic_slerp"]
        if request["aesthetic_text"]:
            settings["Aesthetic text"] = request["aesthetic_text"]
            settings["Aesthetic text scale"] = request["aesthetic_text_angle"]
            settings["Aesthetic text negative"] = request["aesthetic_text_negative"]
    settings["Version"] = ", ".join(f"{name} {version}" for name, version in recipe.versions.items())
    negative = f"Negative prompt: {request['negative_prompt']}\n" if request["negative_prompt"] else ""
    facts = ", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items())
    return f"{request['prompt']}\n{negative}{facts}"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
