"""What may be asked for: one Request, checked in full before any model is touched.

Every limit of the public API is written down here, once. predict.py repeats the ones that a form can show,
because Cog reads them as literals; a test holds the two together. What is written as text, a mix or a sweep, is
read by notation.py, which has the limits of these; so are weights in a prompt. Files are named here, not opened.
"""

import math
import secrets
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Self

from . import parsing
from .errors import RequestError

__all__ = ["FORMATS", "MAX_AREA", "MAX_SEED", "SCHEDULERS", "SIZES", "Request"]

SIZES = tuple(range(128, 1025, 64))  # pixels; Stable Diffusion's UNet halves latents of 1/8 three times
MAX_AREA = 1024 * 768  # pixels
MAX_SEED = 2**32 - 1
# Each sampler with the fewest steps that it can begin where the noise is, and end without noise, in.
SCHEDULERS = {
    "PNDM": 3,
    "DDIM": 2,
    "DPMSolverMultistep": 1,
    "K_EULER": 2,
    "K_EULER_ANCESTRAL": 2,
    "KLMS": 2,
    "HeunDiscrete": 5,
    "KarrasDPM": 1,
}
FORMATS = ("png", "webp", "jpg")
RENAMED = {"n_samples": "num_outputs", "scale": "guidance_scale", "ddim_steps": "num_inference_steps"}


def _limited(default: Any, **limits: Any) -> Any:
    return field(default=default, metadata=limits)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prediction. Raises RequestError, naming the field, the value and what would be right."""

    prompt: str = _limited("a painting of a virus monster playing guitar", max_length=2000)
    negative_prompt: str = _limited("", max_length=2000)  # characters, like the prompt's
    long_prompt: bool = False  # whether all of both is read, and weights in them: see notation.parse_weights
    aesthetic_embedding: str | None = None  # a name in embeddings/index.json; None: see Registry.default
    aesthetic_steps: int = _limited(10, ge=0, le=parsing.MAX_STEPS)  # updates of the text encoder; 0: the plain model
    aesthetic_lr: float = _limited(1e-4, ge=0.0, le=0.1)  # Adam's learning rate
    aesthetic_embedding_file: Path | None = None  # .pt or .safetensors
    aesthetic_images: Path | None = None  # a picture, or a zip or tar of pictures
    aesthetic_mix: str | None = _limited(None, max_length=1000)  # names and weights: see notation.parse_mix
    aesthetic_weight: float = _limited(1.0, ge=0.0, le=1.0)  # 0: the prompt's own conditioning; 1: the personalised
    aesthetic_slerp: bool = False  # whether the weight goes along the sphere, token by token
    aesthetic_text: str = _limited("", max_length=2000)  # a phrase that turns the aesthetic
    aesthetic_text_angle: float = _limited(0.2, ge=0.0, le=1.0)  # share of the way to the phrase, or to its opposite
    aesthetic_text_negative: bool = False  # whether to turn away from the phrase
    aesthetic_until: float | None = _limited(None, ge=0.0, le=2.0)  # rise of the cosine at which to stop
    aesthetic_sweep: str | None = _limited(None, max_length=100)  # numbers of steps: see notation.parse_stops
    image: Path | None = None  # a picture to start from; width × height is then the frame that it is fitted into
    mask: Path | None = None  # of the image's shape; white is redrawn
    prompt_strength: float = _limited(0.8, ge=0.0, le=1.0)  # share of the steps that the image is redrawn in
    lora: Path | None = None  # .safetensors, changes to the model for this one prediction: see lora.read
    lora_scale: float = _limited(1.0, ge=0.0, le=2.0)  # how much of them; 0: the file is checked, and changes nothing
    width: int = _limited(512, choices=SIZES)  # pixels
    height: int = _limited(512, choices=SIZES)  # pixels
    num_outputs: int = _limited(1, ge=1, le=8)  # pictures
    num_inference_steps: int = _limited(50, ge=1, le=500)  # denoising steps
    guidance_scale: float = _limited(7.5, ge=1.0, le=30.0)  # 1: no guidance
    scheduler: str = _limited("PNDM", choices=SCHEDULERS)
    seed: int | None = _limited(None, ge=0, le=MAX_SEED)  # of the first picture; None: drawn by `seeded`
    disable_safety_checker: bool = False
    output_format: str = _limited("png", choices=FORMATS)
    output_quality: int = _limited(90, ge=1, le=100)  # of webp and jpg; png loses nothing
    ddim_eta: float = _limited(0.0, ge=0.0, le=1.0)  # DDIM's noise; only on the command line

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = _checked(spec.name, spec.type, getattr(self, spec.name), spec.metadata)
            is_blank = spec.name in ("aesthetic_mix", "aesthetic_sweep", "aesthetic_text") and not (value or "").strip()
            object.__setattr__(self, spec.name, spec.default if is_blank else value)
        self._check_together()

    @classmethod
    def from_inputs(cls, **inputs: Any) -> Self:
        """The request of a form or an API call, which may use the original model's names.

        Those are n_samples, scale, ddim_steps and plms (true: PNDM, false: DDIM); None means not given.
        """
        old = {name: inputs.pop(name) for name in (*RENAMED, "plms") if name in inputs}
        for name, value in old.items():
            if value is None:
                continue
            new_name, new_value = RENAMED.get(name, "scheduler"), value
            if name == "plms":
                new_value = "PNDM" if _boolean(name, value) else "DDIM"
            _rename(inputs, name, new_name, value, new_value)
        unknown = sorted(set(inputs) - {spec.name for spec in fields(cls)})
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
        return replace(
            self,
            seed=self.seed + index,
            num_outputs=1,
            aesthetic_steps=steps,
            aesthetic_sweep=None,
            aesthetic_until=None,
        )

    @property
    def mix(self) -> Mapping[str, float]:
        """The weights of aesthetic_mix by name; empty if there is none."""
        return parsing.parse_mix(self.aesthetic_mix) if self.aesthetic_mix is not None else {}

    @property
    def sweep(self) -> tuple[int, ...]:
        """The numbers of steps of aesthetic_sweep; empty if there is none."""
        return parsing.parse_stops(self.aesthetic_sweep) if self.aesthetic_sweep is not None else ()

    @property
    def aesthetic_source(self) -> str:
        """The input that says which aesthetic to follow."""
        return next((name for name in _SOURCES if getattr(self, name) is not None), "aesthetic_embedding")

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the plain model is asked for, so that no aesthetic is needed."""
        return (self.sweep or (self.aesthetic_steps,))[-1] == 0

    @property
    def img2img_steps(self) -> int:
        """How many of the denoising steps redraw the image: the whole steps in the exact product.

        diffusers takes those of the floating-point product, in which 0.58 of 50 is less than 29.
        """
        return int(Fraction(str(self.prompt_strength)) * self.num_inference_steps)

    def _check_together(self) -> None:
        if self.width * self.height > MAX_AREA:
            raise RequestError(
                f"width × height must be at most {MAX_AREA} pixels (1024 × 768), "
                f"and {self.width} × {self.height} are {self.width * self.height}"
            )
        if self.mask is not None and self.image is None:
            raise RequestError("mask says what of an image to redraw: give the image, too")
        fewest = SCHEDULERS[self.scheduler]
        if self.num_inference_steps < fewest:
            raise RequestError(
                f"num_inference_steps must be {fewest} or more for scheduler {self.scheduler}, which leaves noise in "
                f"the image after {self.num_inference_steps}; DPMSolverMultistep and KarrasDPM take 1 or more"
            )
        if self.image is not None and self.img2img_steps < 1:
            raise RequestError(
                f"prompt_strength {self.prompt_strength} of {self.num_inference_steps} num_inference_steps is less "
                "than one step, which redraws nothing: raise either"
            )
        sources = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(sources) > 1:
            raise RequestError(f"give only one of {' and '.join(sources)}: an aesthetic has one source")
        _ = self.mix  # which raises if it can't be read
        if self.long_prompt:
            for text in (self.prompt, self.negative_prompt):
                parsing.parse_weights(text)  # likewise
        if self.sweep and self.num_outputs > 1:
            raise RequestError(f"a sweep draws one picture at each stop: num_outputs must be 1, not {self.num_outputs}")
        if self.sweep and self.aesthetic_until is not None:
            raise RequestError("give only one of aesthetic_sweep and aesthetic_until: both say where to stop")
        if self.seed is not None and self.seed + self.num_outputs - 1 > MAX_SEED:
            raise RequestError(
                f"seed must be at most {MAX_SEED + 1 - self.num_outputs} for {self.num_outputs} pictures, "
                f"not {self.seed}: each takes the seed after the one before it"
            )


_SOURCES = ("aesthetic_embedding", "aesthetic_mix", "aesthetic_embedding_file", "aesthetic_images")


def _rename(inputs: dict[str, Any], name: str, new_name: str, value: Any, new_value: Any) -> None:
    """Put an old input in the place of the new one, which must be absent, blank, default or the same."""
    default = next(spec.default for spec in fields(Request) if spec.name == new_name)
    present = inputs.get(new_name, default)
    if present not in (None, default, new_value):
        raise RequestError(f"{name}={brief(value)} contradicts {new_name}={brief(present)}: give only {new_name}")
    inputs[new_name] = new_value


def _checked(name: str, kind: Any, value: Any, limits: Any) -> Any:
    """`value` as the field's own type and within its limits."""
    if value is None and kind in (int | None, float | None, str | None, Path | None):
        return None
    value = _CHECKS[kind](name, value)
    if "max_length" in limits and len(value) > limits["max_length"]:
        raise RequestError(f"{name} must have at most {limits['max_length']} characters, not {len(value)}")
    if "choices" in limits and value not in limits["choices"]:
        raise RequestError(f"{name} must be one of {', '.join(map(str, limits['choices']))}, not {brief(value)}")
    if "ge" in limits and not limits["ge"] <= value <= limits["le"]:
        raise RequestError(f"{name} must be {limits['ge']} to {limits['le']}, not {brief(value)}")
    return value


def _integer(name: str, value: Any) -> int:
    # JSON has one kind of number: 7.0 is a whole one.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise RequestError(f"{name} must be a whole number, not {brief(value)}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):  # an int of four hundred digits
            if math.isfinite(value):
                return float(value)
    raise RequestError(f"{name} must be a number, not {brief(value)}")


def _boolean(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise RequestError(f"{name} must be true or false, not {brief(value)}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text, not {brief(value)}")
    # Control characters act on terminals and end PNG texts; half a surrogate pair (Cs) is no character at all.
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise RequestError(f"{name} must not hold the control character {character!r}")
    return value


def _path(name: str, value: Any) -> Path:
    if isinstance(value, Path):
        return value
    raise RequestError(f"{name} must be a file, not {brief(value)}")


_CHECKS: dict[Any, Any] = {
    str: _text,
    str | None: _text,
    int: _integer,
    int | None: _integer,
    float: _number,
    float | None: _number,
    bool: _boolean,
    Path | None: _path,
}
