"""Pictures become files that know how they were made; and what such a file knows is read back.

Each file carries two texts. `parameters` is the convention of the Stable Diffusion web UIs, for people and for
the tools that read it. `aesthetic` is JSON, a Recipe, from which the Request is rebuilt. Both speak of the one
picture in the file: of a batch, picture i says seed + i and one output. Neither holds a time or a path, so
that the same request gives the same bytes. A PNG has texts of its own; a WebP and a JPEG have Exif, where the web UIs
put `parameters` into the user's comment, and the JSON is the description of the image.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from PIL import ExifTags, Image, PngImagePlugin

from .. import __version__
from ..errors import ImageError, RequestError
from ..request import Request
from ..writing import whole

__all__ = ["Recipe", "encode", "encode_sheet", "read_recipe", "write"]

KEY = "aesthetic"
UTF_16 = b"UNICODE\0"  # how a comment in Exif begins
PILLOW = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}  # what it calls the formats
MODEL_FACTS = ("name", "revision", "precision")
AESTHETIC_FACTS = ("name", "source", "sha256")
SOURCES = ("name", "mix", "file", "pictures")
SAMPLERS = {  # what the web UIs call them
    "PNDM": "PLMS",
    "DDIM": "DDIM",
    "DPMSolverMultistep": "DPM++ 2M",
    "K_EULER": "Euler",
    "K_EULER_ANCESTRAL": "Euler a",
    "KLMS": "LMS",
    "HeunDiscrete": "Heun",
    "KarrasDPM": "DPM++ 2M Karras",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What made a picture.

    request:   the fields of its Request, without files: a file is known by its sha256.
    model:     name, revision on the hub, and precision.
    aesthetic: name, source (name, mix, file or pictures), sha256; empty if the model drew without one.
    files:     the sha256 of image, mask and lora, by these names, where there are any.
    versions:  of this code and of the libraries that decide what is drawn.
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
        return cls(request=kept, model=model, aesthetic=aesthetic, files=files, versions=_versions())

    def settings(self) -> Request:
        """The request again, but for a file that its aesthetic came from, or was made of.

        Raises RequestError if the recipe is none, or has been tampered with.
        """
        try:
            request = Request(**self.request)
        except TypeError as error:
            raise RequestError(f"the recipe is not one of this version's: {error}") from error
        if request.seed is None:
            raise RequestError("the recipe names no seed")
        if request.num_outputs != 1 or request.sweep:
            raise RequestError("the recipe is of more than one picture")
        return request

    def rebuild(self, aesthetic_embedding_file: Path | None = None, **files: Path) -> Request:
        """The request again, which draws the same picture.

        aesthetic_embedding_file: where the aesthetic came from a file, that file; where it was made of pictures,
        the file that `python -m aesthetic embed` makes of them.
        files: the image, the mask and the LoRA, by these names, if the picture was drawn from any.

        Raises RequestError as `settings` does, and if a file is needed and missing, or is another one.
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


@cache
def _versions() -> dict[str, str]:
    """The versions of this code and of the libraries that decide what is drawn."""
    return {
        "aesthetic": __version__,
        **{library: version(library) for library in ("torch", "diffusers", "transformers")},
    }


def _require_same(path: Path, sha256: str) -> None:
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    if own != sha256:
        raise RequestError(f"{path} has the sha256 {own}, and the picture was drawn with {sha256}")


def encode(image: Image.Image, recipe: Recipe) -> bytes:
    """The file of one picture with its recipe, in the format of the recipe's request."""
    parameters, facts = _parameters(recipe), json.dumps(asdict(recipe), ensure_ascii=False, sort_keys=True)
    if recipe.request["output_format"] == "png":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("parameters", parameters)
        texts.add_text(KEY, facts)
        return _encode(image, recipe.request, pnginfo=texts)
    return _encode(image, recipe.request, exif=_exif(parameters, facts))


def _exif(parameters: str, facts: str) -> Image.Exif:
    """Both texts: `facts` as the description of the image, `parameters` as the user's comment."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = facts.encode()
    # Exif gives the comment the type UNDEFINED. Pillow writes bytes as BYTE, which piexif and exiv2 read as numbers,
    # and a list of anything but numbers, text and bytes as UNDEFINED. The text has the byte order of the Exif block,
    # which Pillow writes big-endian: exiv2 expects them to agree.
    comment = bytearray(UTF_16 + parameters.encode("utf-16-be"))
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = [comment]
    return exif


def encode_sheet(image: Image.Image, request: Request) -> bytes:
    """The file of a picture that has no recipe, in the format of a request."""
    return _encode(image, asdict(request))


def write(path: Path, image: Image.Image, recipe: Recipe) -> None:
    """Write one picture with its recipe, in the format of the recipe's request, whose name is the path's suffix."""
    with whole(path) as unfinished:
        unfinished.write_bytes(encode(image, recipe))


def _encode(image: Image.Image, request: Mapping[str, Any], **texts: Any) -> bytes:
    # Runs alone take about half of the default's time, and make files that are hardly larger: what PNG's filters leave
    # of colours has runs, and little else to find.
    options = {"compress_type": zlib.Z_RLE, "compress_level": 1, "quality": request["output_quality"]}
    file = io.BytesIO()
    image.save(file, PILLOW[request["output_format"]], **options, **texts)
    return file.getvalue()


def read_recipe(path: Path) -> Recipe:
    """The recipe in a picture. Raises ImageError if there is none that can be read."""
    try:
        with Image.open(path, formats=["PNG", "WEBP", "JPEG"]) as image:
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
            model=_strings(facts["model"], required=MODEL_FACTS),
            aesthetic=_strings(facts["aesthetic"], required=AESTHETIC_FACTS if facts["aesthetic"] else ()),
            versions=_strings(facts["versions"]),
        )
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}") from error
    except Exception as error:  # the file is anybody's
        raise ImageError(f"{path.name} carries no recipe: it is no picture that this service drew") from error


def _strings(facts: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, str]:
    """`facts` if they are all text that may be shown on a terminal, and none is missing."""
    if not all(isinstance(text, str) and (name + text).isprintable() for name, text in facts.items()):
        raise ValueError("not text")
    return {**{name: facts[name] for name in required}, **facts}


def _parameters(recipe: Recipe) -> str:
    """The text under `parameters`: prompt, negative prompt, and a line of settings."""
    request, aesthetic = recipe.request, recipe.aesthetic
    settings: dict[str, object] = {
        "Steps": request["num_inference_steps"],
        "Sampler": SAMPLERS[request["scheduler"]],
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
    lines = [request["prompt"]]
    if request["negative_prompt"]:
        lines.append(f"Negative prompt: {request['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
