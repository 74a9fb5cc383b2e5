"""The Cog predictor: inputs -> Request -> Service -> PNG paths. The only file that knows Cog.

Cog reads this file without running it, to make the web form and the API's schema: only plain literals may
stand in Input(...), and a description must be one string. When a prediction is cancelled, an exception ends predict()
at any point, inside a `finally` too, and the rest of it goes on to its next step: nothing here or below cleans up at
the end, everything starts clean instead.
"""

import atexit
import logging
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path as LocalPath
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Tuple

from cog import BasePredictor, Input, Path

from aesthetic.cancellation import Predictions, check
from aesthetic.errors import AestheticError, SettingError
from aesthetic.request import Request
from aesthetic.settings import silence_libraries

if TYPE_CHECKING:
    from aesthetic.service import Result

log = logging.getLogger(__name__)

COGLET = LocalPath("/tmp/coglet/predictions")  # noqa: S108  Cog makes a folder in there for each prediction
SIZES = [128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024]


class Predictor(BasePredictor):
    """Stable Diffusion with aesthetic gradients."""

    def setup(self) -> None:
        """Load the model, from local files only, and get ready for the form's defaults."""
        _require_writable(COGLET)
        atexit.register(_remove_empty, COGLET, since=time.time())
        silence_libraries()
        from aesthetic.service import Service  # takes seconds to import; the schema is made without it

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self.service = Service.load()
        self.predictions = Predictions()
        self.predictions.make(self.service.warm_up, Request())
        self.temporary = LocalPath(tempfile.mkdtemp(prefix="aesthetic-"))
        atexit.register(lambda: shutil.rmtree(self.temporary, ignore_errors=True))
        # Cog's too, for what it downloads before it calls predict: tempfile.tempdir can't make a lost folder again.
        tempfile.gettempdir = self._temporary_folder

    def healthcheck(self) -> bool:
        """Whether the model can still draw. Only an idle GPU is tested: a busy one answers after Cog's five seconds."""
        return self.predictions.is_busy() or self.service.is_healthy()

    def predict(
        self,
        prompt: str = Input(
            description="What to draw.",
            default="a painting of a virus monster playing guitar",
            max_length=2000,
        ),
        negative_prompt: str = Input(description="What to keep out of the picture.", default="", max_length=2000),
        aesthetic_embedding: Optional[str] = Input(
            description="The aesthetic to steer the picture towards, by name: the first eight are for Stable Diffusion, the others, from ink on, for the demo model. Blank: the default of the model that draws, sac_8plus or gold; or give a file or pictures of your own below.",
            default=None,
            choices=[
                "sac_8plus",
                "laion_7plus",
                "aivazovsky",
                "cloudcore",
                "gloomcore",
                "glowwave",
                "fantasy",
                "flower_plant",
                "ink",
                "blueprint",
                "neon",
                "night",
                "sepia",
                "pixel",
                "watercolour",
                "pop",
                "chalk",
                "sunset",
                "gold",
            ],
        ),
        aesthetic_steps: int = Input(
            description="How far to go towards the aesthetic. Start with 2 or 3, then try 5, 10, 15, 20: the more steps, the more of the aesthetic and the less of the prompt. 0 draws without it.",
            default=10,
            ge=0,
            le=100,
        ),
        aesthetic_lr: float = Input(
            description="How long each of these steps is (the learning rate). 0.0001 suits most prompts; change the number of steps first.",
            default=0.0001,
            ge=0,
            le=0.1,
        ),
        aesthetic_embedding_file: Optional[Path] = Input(
            description="An aesthetic of your own: a .pt or .safetensors file made from pictures that you like (the README says how).",
            default=None,
        ),
        aesthetic_images: Optional[Path] = Input(
            description="Pictures that you like, to make an aesthetic from on the spot: one picture, or a zip or tar of up to 500.",
            default=None,
        ),
        image: Optional[Path] = Input(
            description="A picture to start from, in place of nothing but noise. It is fitted into width × height.",
            default=None,
        ),
        mask: Optional[Path] = Input(
            description="What of the image to redraw: white is redrawn, black stays as it is. Of the shape of the image.",
            default=None,
        ),
        prompt_strength: float = Input(
            description="How much of the image to redraw: little below 0.3, all of it at 1.",
            default=0.8,
            ge=0,
            le=1,
        ),
        width: int = Input(
            description="Width in pixels. width × height can be at most 1024 × 768.",
            default=512,
            choices=SIZES,
        ),
        height: int = Input(
            description="Height in pixels. width × height can be at most 1024 × 768.",
            default=512,
            choices=SIZES,
        ),
        num_outputs: int = Input(
            description="How many pictures to draw. Each takes the seed after the one before it.",
            default=1,
            ge=1,
            le=8,
        ),
        num_inference_steps: int = Input(
            description="How many denoising steps to draw in. More take longer and add detail.",
            default=50,
            ge=1,
            le=500,
        ),
        guidance_scale: float = Input(
            description="How closely to follow the prompt. 1 switches guidance off.",
            default=7.5,
            ge=1,
            le=30,
        ),
        scheduler: str = Input(
            description="The sampler. PNDM is the original code's --plms.",
            default="PNDM",
            choices=[
                "PNDM",
                "DDIM",
                "DPMSolverMultistep",
                "K_EULER",
                "K_EULER_ANCESTRAL",
                "KLMS",
                "HeunDiscrete",
                "KarrasDPM",
            ],
        ),
        seed: Optional[int] = Input(
            description="The same seed and settings draw the same picture. Blank: a random one, which the log and the picture tell you.",
            default=None,
            ge=0,
            le=4294967295,
        ),
        disable_safety_checker: bool = Input(
            description="Show pictures that the safety checker would keep back.", default=False
        ),
        output_format: str = Input(
            description="png keeps every pixel; webp and jpg are smaller. Each carries its recipe.",
            default="png",
            choices=["png", "webp", "jpg"],
        ),
        output_quality: int = Input(
            description="How much of the picture webp and jpg keep: more is better and larger.",
            default=90,
            ge=1,
            le=100,
        ),
        aesthetic_sweep: Optional[str] = Input(
            description="To see how far is right: numbers of steps, as 0,2,5,10,20. Draws a picture for each from the same noise, and last a sheet of all of them. Takes the place of aesthetic_steps.",
            default=None,
            max_length=100,
        ),
        aesthetic_until: Optional[float] = Input(
            description="Stop after the step at which the similarity of prompt and aesthetic has risen by this much, say 0.1: one setting for all prompts. aesthetic_steps is then the most that is taken.",
            default=None,
            ge=0,
            le=2,
        ),
        aesthetic_mix: Optional[str] = Input(
            description="Several aesthetics in place of one, with weights: fantasy:0.7 gloomcore:0.5 laion_7plus:-0.2. A negative weight steers away.",
            default=None,
            max_length=1000,
        ),
        aesthetic_weight: float = Input(
            description="Weakens the effect without taking fewer steps: 0 draws from the prompt as it is, 1 from the personalised one.",
            default=1.0,
            ge=0,
            le=1,
        ),
        aesthetic_slerp: bool = Input(
            description="With a weight between 0 and 1: go from the one to the other on the sphere, token by token, rather than straight.",
            default=False,
        ),
        aesthetic_text: str = Input(
            description="A phrase that turns the aesthetic towards what it says, for what the pictures lack: more colourful.",
            default="",
            max_length=2000,
        ),
        aesthetic_text_angle: float = Input(
            description="How far the phrase turns the aesthetic: 0 not at all, 1 all the way to the phrase.",
            default=0.2,
            ge=0,
            le=1,
        ),
        aesthetic_text_negative: bool = Input(
            description="Turn the aesthetic away from the phrase instead.", default=False
        ),
        long_prompt: bool = Input(
            description="Read all of a long prompt, in chunks of 75 tokens, instead of cutting it there, and weights in it as in (red:1.3). Without, a prompt is plain text, as in the original code.",
            default=False,
        ),
        lora: Optional[Path] = Input(
            description="To draw in a style or a subject that somebody has trained: a LoRA, a .safetensors file for this kind of model (Stable Diffusion 1.5, usually). The aesthetic then works on top of it.",
            default=None,
        ),
        lora_scale: float = Input(
            description="How strong the LoRA is: 1 as it was trained, less to soften it, 0 leaves it out.",
            default=1.0,
            ge=0,
            le=2,
        ),
        n_samples: Optional[int] = Input(
            description="Old name of num_outputs.", default=None, ge=1, le=8, deprecated=True
        ),
        scale: Optional[float] = Input(
            description="Old name of guidance_scale.", default=None, ge=1, le=30, deprecated=True
        ),
        ddim_steps: Optional[int] = Input(
            description="Old name of num_inference_steps.", default=None, ge=1, le=500, deprecated=True
        ),
        plms: Optional[bool] = Input(
            description="Old way to choose the scheduler: true is PNDM, false is DDIM.",
            default=None,
            deprecated=True,
        ),
    ) -> List[Path]:
        """Draw, and return the pictures in order."""
        inputs = {name: value for name, value in locals().items() if name != "self"}
        paths, drawing = self.predictions.make(self._draw, inputs, self._fresh_folder(inputs.values()))
        self.record_metric("seed", drawing.request.seed)
        self.record_metric("blocked", drawing.blocked)
        self.record_metric("steps", drawing.steps)
        self.record_metric("drift", round(drawing.drift, 4))
        if drawing.similarity is not None:
            self.record_metric("similarity.before", round(drawing.similarity[0], 4))
            self.record_metric("similarity.after", round(drawing.similarity[1], 4))
        for stage, seconds in drawing.seconds.items():
            self.record_metric(f"timing.{stage}", round(seconds, 3))
        return [Path(path) for path in paths]

    def _temporary_folder(self) -> str:
        """Where all temporary files go: a new folder once a cleaner of /tmp has removed the last one.

        Anybody may make something of the lost folder's name, and a prediction empties its folder.
        """
        if not _is_safe(self.temporary):
            parent = next(filter(_is_safe, self.temporary.parents))
            self.temporary = LocalPath(tempfile.mkdtemp(prefix="aesthetic-", dir=parent))
        return str(self.temporary)

    def _draw(self, inputs: Dict[str, Any], folder: LocalPath) -> "Tuple[List[LocalPath], Result]":
        try:
            return self.service.predict(Request.from_inputs(**inputs), folder)
        except AestheticError:
            raise  # Cog shows its message, which is enough
        except Exception:
            check()  # when nobody waits any more, the next one may have cleared away what this one needed
            log.exception("The prediction failed")
            raise

    def _fresh_folder(self, inputs: Iterable[Any]) -> LocalPath:
        """An empty folder for this prediction's pictures. But for its inputs, all temporary files are removed.

        Cog reads the pictures after predict has returned and never deletes them, nor what it failed to download.
        """
        kept = {LocalPath(given) for given in inputs if isinstance(given, LocalPath)}
        for path in set(LocalPath(tempfile.gettempdir()).iterdir()) - kept:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return LocalPath(tempfile.mkdtemp())


def _is_safe(folder: LocalPath) -> bool:
    """Whether `folder` is a folder of this user or of root, and not a link."""
    with suppress(OSError):
        state = folder.lstat()
        return stat.S_ISDIR(state.st_mode) and state.st_uid in (0, os.geteuid())
    return False


def _require_writable(folder: LocalPath) -> None:
    """Raise SettingError if Cog, run by this user, can't make the folder of a prediction in `folder`."""
    found = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK, effective_ids=True))
    if not os.access(found, os.W_OK | os.X_OK, effective_ids=True):
        raise SettingError(
            f"Cog keeps the files of each prediction in {folder}, and {found} belongs to {_owner(found)}: every "
            f"prediction would fail. Remove {found}, or serve as that user, or in a container"
        )


def _owner(path: LocalPath) -> str:
    try:
        return path.owner()
    except KeyError:  # a number without a name
        return f"the user {path.stat().st_uid}"


def _remove_empty(folder: LocalPath, since: float) -> None:
    """Remove the empty folders that Cog has made in `folder` since then, for this user, and leaves behind."""
    with suppress(OSError):
        for prediction in folder.iterdir():
            state = prediction.stat()
            if state.st_mtime >= since and state.st_uid == os.geteuid():
                for path in (prediction / "inputs", prediction / "outputs", prediction):
                    with suppress(OSError):
                        path.rmdir()
        folder.rmdir()
        folder.parent.rmdir()
