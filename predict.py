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
        require_writable(COGLET)
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
            description="What to draw. Only the first 75 tokens (about 50 words) are read, unless long_prompt is set.",
            default="a painting of a virus monster playing guitar",
            max_length=2000,
        ),
        negative_prompt: str = Input(description="What to keep out of the image.", default="", max_length=2000),
        aesthetic_embedding: Optional[str] = Input(
            description="Named aesthetic (the mean CLIP embedding of a set of images) to steer towards. The first eight are for Stable Diffusion, the others, from ink on, for the demo. Blank: your mix, file or images, else the model's default, sac_8plus or gold.",
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
            description="How many optimization steps to take towards the aesthetic. Start with 2 or 3, then try 5, 10, 15, 20: more steps give more of the aesthetic and less of the prompt. 0 uses the plain model.",
            default=10,
            ge=0,
            le=100,
        ),
        aesthetic_lr: float = Input(
            description="Learning rate of the aesthetic steps. 0.0001 suits most prompts; change aesthetic_steps first.",
            default=0.0001,
            ge=0,
            le=0.1,
        ),
        aesthetic_embedding_file: Optional[Path] = Input(
            description="An aesthetic of your own: a .pt or .safetensors file (the README says how to make one).",
            default=None,
        ),
        aesthetic_images: Optional[Path] = Input(
            description="Images you like, to make an aesthetic from for this prediction: one image, or a zip or tar of up to 500.",
            default=None,
        ),
        image: Optional[Path] = Input(
            description="An image to start from (img2img). It is scaled and cropped to fit into width × height.",
            default=None,
        ),
        mask: Optional[Path] = Input(
            description="Inpainting mask for image: white is redrawn, black is kept. Same aspect ratio as image.",
            default=None,
        ),
        prompt_strength: float = Input(
            description="How much of image to redraw: below 0.3 changes little, 1 draws from noise alone.",
            default=0.8,
            ge=0,
            le=1,
        ),
        width: int = Input(
            description="Width in pixels. width × height must be at most 1024 × 768.",
            default=512,
            choices=SIZES,
        ),
        height: int = Input(
            description="Height in pixels. width × height must be at most 1024 × 768.",
            default=512,
            choices=SIZES,
        ),
        num_outputs: int = Input(
            description="How many images to draw. Each uses the seed after the one before it.",
            default=1,
            ge=1,
            le=8,
        ),
        num_inference_steps: int = Input(
            description="How many denoising steps to take. More take longer and add detail. PNDM needs at least 3, HeunDiscrete 5, DPMSolverMultistep and KarrasDPM 1, the others 2.",
            default=50,
            ge=1,
            le=500,
        ),
        guidance_scale: float = Input(
            description="How closely to follow the prompt (classifier-free guidance). 1 turns guidance off.",
            default=7.5,
            ge=1,
            le=30,
        ),
        scheduler: str = Input(
            description="The sampler: the method that turns noise into an image, step by step. PNDM is the original code's --plms; DPMSolverMultistep and KarrasDPM need fewer steps, about 20.",
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
            description="The same seed and settings draw the same image. Blank: a random seed, shown in the log and stored in the image.",
            default=None,
            ge=0,
            le=4294967295,
        ),
        disable_safety_checker: bool = Input(
            description="Return images that the safety checker would block.", default=False
        ),
        output_format: str = Input(
            description="png is lossless, webp and jpg are smaller. Each file stores the settings that made the image.",
            default="png",
            choices=["png", "webp", "jpg"],
        ),
        output_quality: int = Input(
            description="Quality of webp and jpg: higher looks better and takes more space. No effect on png.",
            default=90,
            ge=1,
            le=100,
        ),
        aesthetic_sweep: Optional[str] = Input(
            description="Up to 12 rising numbers of steps to compare, such as 0,2,5,10,20: draws an image for each from the same noise, then a contact sheet of them all. Replaces aesthetic_steps.",
            default=None,
            max_length=100,
        ),
        aesthetic_until: Optional[float] = Input(
            description="Stop early, once the cosine similarity of prompt and aesthetic has risen by this much, such as 0.1. Prompts respond at different speeds, and this one setting suits all. aesthetic_steps is then the maximum.",
            default=None,
            ge=0,
            le=2,
        ),
        aesthetic_mix: Optional[str] = Input(
            description="Up to 16 aesthetics with weights, in place of one: fantasy:0.7 gloomcore:0.5 laion_7plus:-0.2. A negative weight steers away from that aesthetic.",
            default=None,
            max_length=1000,
        ),
        aesthetic_weight: float = Input(
            description="How much of the aesthetic's effect to keep: 0 draws from the prompt alone, 1 from the prompt as personalized by all aesthetic_steps, and values in between blend the two.",
            default=1.0,
            ge=0,
            le=1,
        ),
        aesthetic_slerp: bool = Input(
            description="How aesthetic_weight blends: by spherical interpolation (slerp) of each token's vector if true, linearly if false. No effect at weights of 0 and 1.",
            default=False,
        ),
        aesthetic_text: str = Input(
            description="A phrase that adjusts the aesthetic, such as: bright colors. It turns the aesthetic towards the phrase's CLIP embedding and does not change the prompt.",
            default="",
            max_length=2000,
        ),
        aesthetic_text_angle: float = Input(
            description="How far aesthetic_text turns the aesthetic: 0 not at all, 1 all the way, so that only the phrase is left.",
            default=0.2,
            ge=0,
            le=1,
        ),
        aesthetic_text_negative: bool = Input(
            description="Turn the aesthetic away from aesthetic_text, not towards it.", default=False
        ),
        long_prompt: bool = Input(
            description="Read prompts of more than 75 tokens in full, in chunks, and apply weights such as (red:1.3). Otherwise longer prompts are cut off and parentheses are plain text, as in the original code.",
            default=False,
        ),
        lora: Optional[Path] = Input(
            description="A LoRA, which adds a trained style or subject to the model: a .safetensors file made for this kind of model (usually Stable Diffusion 1.5). The aesthetic works on top of it.",
            default=None,
        ),
        lora_scale: float = Input(
            description="Strength of the LoRA: 1 is as trained, less softens it, 0 leaves it out.",
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
        for name, value in drawing.metrics.items():
            self.record_metric(name, value)
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


def require_writable(folder: LocalPath) -> None:
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
