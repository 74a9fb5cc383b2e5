"""Every input of a prediction and every limit: one Request, checked in full before any model is touched.

Limits, choices and help texts are written here, once; the command line takes its flags from here. predict.py repeats
them as literals, because Cog reads that file without running it, and a test compares the two. parsing.py reads inputs
that are structured text (mixes, sweeps, prompt weights) and has their limits. Files are named here, not opened.
"""

import math
import secrets
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Self, get_args

from . import parsing
from .errors import RequestError

__all__ = [
    "FIELDS",
    "FORMATS",
    "MAX_AREA",
    "MAX_SEED",
    "MAX_SIDE",
    "RENAMED",
    "SCHEDULERS",
    "SIZES",
    "SOURCES",
    "XL_AREA",
    "Request",
    "base_type",
    "checked",
]


@dataclass(frozen=True)
class Scheduler:
    """One sampler: its class in diffusers, its name in the Stable Diffusion web UIs, and what makes it work.

    fewest_steps: the fewest with which it starts from pure noise and leaves none in the image.
    config:       what it overrides in the model's scheduler configuration.
    """

    class_name: str
    web_ui_name: str
    fewest_steps: int
    config: Mapping[str, Any] = field(default_factory=dict)


SCHEDULERS: Mapping[str, Scheduler] = {
    "PNDM": Scheduler("PNDMScheduler", "PLMS", 3, {"skip_prk_steps": True}),  # as in PLMS: one UNet call a step
    "DDIM": Scheduler("DDIMScheduler", "DDIM", 2),
    "DPMSolverMultistep": Scheduler("DPMSolverMultistepScheduler", "DPM++ 2M", 1),
    "K_EULER": Scheduler("EulerDiscreteScheduler", "Euler", 2),
    "K_EULER_ANCESTRAL": Scheduler("EulerAncestralDiscreteScheduler", "Euler a", 2),
    "KLMS": Scheduler("LMSDiscreteScheduler", "LMS", 2),
    "HeunDiscrete": Scheduler("HeunDiscreteScheduler", "Heun", 5),
    "KarrasDPM": Scheduler("DPMSolverMultistepScheduler", "DPM++ 2M Karras", 1, {"use_karras_sigmas": True}),
}
SIZES = tuple(range(128, 1537, 64))  # pixels; Stable Diffusion's UNet halves latents of 1/8 three times
MAX_SIDE, MAX_AREA = 1024, 1024 * 768  # pixels
XL_AREA = 1024 * 1024  # pixels, with Stable Diffusion XL, and then of all SIZES
MAX_SEED = 2**32 - 1
FORMATS = ("png", "webp", "jpg")
RENAMED = {  # the original model's inputs
    "n_samples": "num_outputs",
    "scale": "guidance_scale",
    "ddim_steps": "num_inference_steps",
    "plms": "scheduler",
}
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a file"}
SOURCES = ("aesthetic_embedding", "aesthetic_mix", "aesthetic_embedding_file", "aesthetic_images")


# ruff: noqa: RUF009  (this makes a dataclass field, not a shared default)
def _input(default: Any, *, description: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": " ".join(description.split()), **limits})


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prediction. Raises RequestError with the field, its value and what would be valid."""

    # fmt: off
    prompt: str = _input("a painting of a virus monster playing guitar", max_length=2000, description="""
        What to draw. Only the first 75 tokens (about 50 words) are read, unless long_prompt is set.""")
    negative_prompt: str = _input("", max_length=2000, description="What to keep out of the image.")
    long_prompt: bool = _input(False, description="""
        Read prompts of more than 75 tokens in full, in chunks, and apply weights such as (red:1.3). Otherwise longer
        prompts are cut off and parentheses are plain text, as in the original code.""")
    aesthetic_embedding: str | None = _input(None, description="""
        Named aesthetic (the mean CLIP embedding of a set of images) to steer towards. The first eight are for Stable
        Diffusion, the others, from ink on, for the demo. Blank: your mix, file or images, else the model's default,
        sac_8plus or gold.""")
    aesthetic_steps: int = _input(10, ge=0, le=parsing.MAX_STEPS, description="""
        How many optimization steps to take towards the aesthetic. Start with 2 or 3, then try 5, 10, 15, 20: more steps
        give more of the aesthetic and less of the prompt. 0 uses the plain model.""")
    aesthetic_lr: float = _input(1e-4, ge=0.0, le=0.1, description="""
        Learning rate of the aesthetic steps. 0.0001 suits most prompts; change aesthetic_steps first.""")
    aesthetic_embedding_file: Path | None = _input(None, description="""
        An aesthetic of your own: a .pt or .safetensors file (embeddings/README.md says how to make one).""")
    aesthetic_images: Path | None = _input(None, description="""
        Images you like, to make an aesthetic from for this prediction: one image, or a zip or tar of up to 500.""")
    aesthetic_mix: str | None = _input(None, max_length=1000, description="""
        Up to 16 aesthetics with weights, in place of one: fantasy:0.7 gloomcore:0.5 laion_7plus:-0.2. A negative weight
        steers away from that aesthetic.""")
    aesthetic_weight: float = _input(1.0, ge=0.0, le=1.0, description="""
        How much of the aesthetic's effect to keep: 0 draws from the prompt alone, 1 from the prompt as personalized by
        all aesthetic_steps, and values in between blend the two.""")
    aesthetic_slerp: bool = _input(False, description="""
        How aesthetic_weight blends: by spherical interpolation (slerp) of each token's vector if true, linearly if
        false. No effect at weights of 0 and 1.""")
    aesthetic_text: str = _input("", max_length=2000, description="""
        A phrase that adjusts the aesthetic, such as: bright colors. It turns the aesthetic towards the phrase's CLIP
        embedding and does not change the prompt.""")
    aesthetic_text_angle: float = _input(0.2, ge=0.0, le=1.0, description="""
        How far aesthetic_text turns the aesthetic: 0 not at all, 1 all the way, so that only the phrase is left.""")
    aesthetic_text_negative: bool = _input(False, description="""
        Turn the aesthetic away from aesthetic_text, not towards it.""")
    aesthetic_until: float | None = _input(None, ge=0.0, le=2.0, description="""
        Stop early, once the cosine similarity of prompt and aesthetic has risen by this much, such as 0.1. Prompts
        respond at different speeds, and this one setting suits all. aesthetic_steps is then the maximum.""")
    aesthetic_sweep: str | None = _input(None, max_length=100, description="""
        Up to 12 rising numbers of steps to compare, such as 0,2,5,10,20: draws an image for each from the same noise,
        then a contact sheet of them all. Replaces aesthetic_steps.""")
    image: Path | None = _input(None, description="""
        An image to start from (img2img). It is scaled and cropped to fit into width × height.""")
    mask: Path | None = _input(None, description="""
        Inpainting mask for image: white is redrawn, black is kept. Same aspect ratio as image.""")
    prompt_strength: float = _input(0.8, ge=0.0, le=1.0, description="""
        How much of image to redraw: below 0.3 changes little, 1 draws from noise alone.""")
    lora: Path | None = _input(None, description="""
        A LoRA, which adds a trained style or subject to the model: a .safetensors file made for this kind of model
        (usually Stable Diffusion 1.5). The aesthetic works on top of it.""")
    lora_scale: float = _input(1.0, ge=0.0, le=2.0, description="""
        Strength of the LoRA: 1 is as trained, less softens it, 0 leaves it out.""")
    width: int = _input(512, choices=SIZES, description="""
        Width in pixels: at most 1024, and width × height at most 1024 × 768. Stable Diffusion XL draws best at
        1024 × 1024 or in as many pixels, up to 1536 wide.""")
    height: int = _input(512, choices=SIZES, description="""
        Height in pixels: at most 1024, and width × height at most 1024 × 768. Stable Diffusion XL draws best at
        1024 × 1024 or in as many pixels, up to 1536 high.""")
    num_outputs: int = _input(1, ge=1, le=8, description="""
        How many images to draw. Each uses the seed after the one before it.""")
    num_inference_steps: int = _input(50, ge=1, le=500, description="""
        How many denoising steps to take. More take longer and add detail. PNDM needs at least 3, HeunDiscrete 5,
        DPMSolverMultistep and KarrasDPM 1, the others 2.""")
    guidance_scale: float = _input(7.5, ge=1.0, le=30.0, description="""
        How closely to follow the prompt (classifier-free guidance). 1 turns guidance off.""")
    scheduler: str = _input("PNDM", choices=SCHEDULERS, description="""
        The sampler: the method that turns noise into an image, step by step. PNDM is the original code's --plms;
        DPMSolverMultistep and KarrasDPM need fewer steps, about 20.""")
    seed: int | None = _input(None, ge=0, le=MAX_SEED, description="""
        The same seed and settings draw the same image. Blank: a random seed, shown in the log and stored in the
        image.""")
    disable_safety_checker: bool = _input(False, description="Return images that the safety checker would block.")
    output_format: str = _input("png", choices=FORMATS, description="""
        png is lossless, webp and jpg are smaller. Each file stores the settings that made the image.""")
    output_quality: int = _input(90, ge=1, le=100, description="""
        Quality of webp and jpg: higher looks better and takes more space. No effect on png.""")
    ddim_eta: float = _input(0.0, ge=0.0, le=1.0, description="""
        How much noise DDIM adds at each step; 0 is deterministic. Other schedulers ignore it.""")
    # fmt: on

    def __post_init__(self) -> None:
        for spec in FIELDS.values():
            value = checked(spec, getattr(self, spec.name))
            is_blank = spec.name in ("aesthetic_mix", "aesthetic_sweep", "aesthetic_text") and not (value or "").strip()
            object.__setattr__(self, spec.name, spec.default if is_blank else value)
        self._check_together()

    @classmethod
    def from_inputs(cls, **inputs: Any) -> Self:
        """The request of a form or an API call, which may use the original model's names.

        RENAMED lists those. plms is true for PNDM and false for DDIM; None means not given.
        """
        for name, new_name in RENAMED.items():
            value = inputs.pop(name, None)
            if value is None:
                continue
            new_value = {True: "PNDM", False: "DDIM"}[_typed(name, bool, value)] if name == "plms" else value
            present = inputs.get(new_name)
            if present not in (None, FIELDS[new_name].default, new_value):
                raise RequestError(
                    f"{name}={brief(value)} contradicts {new_name}={brief(present)}: give only {new_name}"
                )
            inputs[new_name] = new_value
        unknown = sorted(inputs.keys() - FIELDS.keys())
        if unknown:
            raise RequestError(f"unknown input {brief(unknown[0])}")
        return cls(**inputs)

    def seeded(self) -> Self:
        """This request with a seed: its own, or one drawn at random from 32 bits."""
        if self.seed is not None:
            return self
        return replace(self, seed=secrets.randbelow(MAX_SEED + 2 - self.num_outputs))

    def alone(self, index: int, steps: int) -> Self:
        """The request that draws image `index` of this one by itself, after so many steps. It must have a seed."""
        assert self.seed is not None
        seed = self.seed + index
        return replace(
            self, seed=seed, num_outputs=1, aesthetic_steps=steps, aesthetic_sweep=None, aesthetic_until=None
        )

    @property
    def mix(self) -> Mapping[str, float]:
        """The weights of aesthetic_mix by name; empty without one."""
        return parsing.parse_mix(self.aesthetic_mix) if self.aesthetic_mix is not None else {}

    @property
    def sweep(self) -> tuple[int, ...]:
        """The numbers of steps of aesthetic_sweep; empty without one."""
        return parsing.parse_sweep(self.aesthetic_sweep) if self.aesthetic_sweep is not None else ()

    @property
    def aesthetic_source(self) -> str:
        """The input that says which aesthetic to follow."""
        return next((name for name in SOURCES if getattr(self, name) is not None), "aesthetic_embedding")

    @property
    def is_plain(self) -> bool:
        """Whether the plain model draws, so that no aesthetic is needed."""
        return (self.sweep or (self.aesthetic_steps,))[-1] == 0

    @property
    def img2img_steps(self) -> int:
        """How many of the denoising steps redraw the image: the exact product, rounded down.

        diffusers rounds the floating-point product down, and 0.58 × 50 comes out below 29.
        """
        return int(Fraction(str(self.prompt_strength)) * self.num_inference_steps)

    def require_size(self, *, is_xl: bool) -> None:
        """Raise RequestError if the image is too large for a model: Stable Diffusion XL, or another."""
        if not is_xl and max(self.width, self.height) > MAX_SIDE:
            raise RequestError(
                f"width and height must be at most {MAX_SIDE} pixels with this model, "
                f"not {self.width} × {self.height}: only Stable Diffusion XL draws wider"
            )
        most, sides = (XL_AREA, "1024 × 1024") if is_xl else (MAX_AREA, "1024 × 768")
        if self.width * self.height > most:
            raise RequestError(
                f"width × height must be at most {most} pixels ({sides}), "
                f"and {self.width} × {self.height} are {self.width * self.height}"
            )

    def _check_together(self) -> None:
        self.require_size(is_xl=True)
        if self.mask is not None and self.image is None:
            raise RequestError("mask needs image: it marks the part of the image to redraw")
        self._check_steps()
        self._check_aesthetic()
        if self.long_prompt:
            for text in (self.prompt, self.negative_prompt):
                parsing.parse_weights(text)  # raises if a weight can't be read
        if self.seed is not None and self.seed + self.num_outputs - 1 > MAX_SEED:
            raise RequestError(
                f"seed must be at most {MAX_SEED + 1 - self.num_outputs} for {self.num_outputs} images, "
                f"not {self.seed}: each image uses the seed after the one before it"
            )

    def _check_steps(self) -> None:
        fewest = SCHEDULERS[self.scheduler].fewest_steps
        if self.num_inference_steps < fewest:
            any_number = " and ".join(name for name, one in SCHEDULERS.items() if one.fewest_steps == 1)
            raise RequestError(
                f"num_inference_steps must be {fewest} or more for scheduler {self.scheduler}, which leaves noise in "
                f"the image after {self.num_inference_steps}; {any_number} take 1 or more"
            )
        if self.image is not None and self.img2img_steps < 1:
            raise RequestError(
                f"prompt_strength {self.prompt_strength} of {self.num_inference_steps} num_inference_steps is less "
                "than one step, which redraws nothing: raise either"
            )

    def _check_aesthetic(self) -> None:
        sources = [name for name in SOURCES if getattr(self, name) is not None]
        if len(sources) > 1:
            raise RequestError(f"give only one of {' and '.join(sources)}: an aesthetic has one source")
        _ = self.mix  # raises if it can't be read
        if self.sweep and self.num_outputs > 1:
            raise RequestError(
                "aesthetic_sweep draws one image for each number of steps: num_outputs must be 1, "
                f"not {self.num_outputs}"
            )
        if self.sweep and self.aesthetic_until is not None:
            raise RequestError("give only one of aesthetic_sweep and aesthetic_until: both say where to stop")


FIELDS: Mapping[str, Field[Any]] = {spec.name: spec for spec in fields(Request)}


def base_type(spec: Field[Any]) -> Any:
    """The type of a field's values other than None: str, int, float, bool or Path."""
    return next(iter(get_args(spec.type)), spec.type)


def checked(spec: Field[Any], value: Any) -> Any:
    """`value` as the field's own type and within its limits. Raises RequestError."""
    if value is None and spec.default is None:
        return None
    name, limits = spec.name, spec.metadata
    value = _typed(name, base_type(spec), value)
    if isinstance(value, str):
        _require_printable(name, value)
    if "max_length" in limits and len(value) > limits["max_length"]:
        raise RequestError(f"{name} must have at most {limits['max_length']} characters, not {len(value)}")
    if "choices" in limits and value not in limits["choices"]:
        raise RequestError(f"{name} must be one of {', '.join(map(str, limits['choices']))}, not {brief(value)}")
    if "ge" in limits and not limits["ge"] <= value <= limits["le"]:
        raise RequestError(f"{name} must be {limits['ge']} to {limits['le']}, not {brief(value)}")
    return value


def _typed(name: str, kind: type, given: Any) -> Any:
    """`given` as an input's type. JSON does not tell 7.0 from 7, so numbers convert where nothing is lost."""
    value = given
    if kind is int and isinstance(given, float) and given.is_integer():
        value = int(given)
    elif kind is float and isinstance(given, int):
        with suppress(OverflowError):  # an int of four hundred digits
            value = float(given)
    is_kind = isinstance(value, kind) and isinstance(given, bool) == (kind is bool)
    if not is_kind or (kind is float and not math.isfinite(value)):
        raise RequestError(f"{name} must be {KINDS[kind]}, not {brief(given)}")
    return value


def _require_printable(name: str, text: str) -> None:
    # Control characters act on terminals and end PNG text chunks; half of a surrogate pair (Cs) can't be encoded.
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise RequestError(f"{name} must not hold the control character {character!r}")
