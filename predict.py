"""The Cog predictor: inputs → Request → Service → paths of images. Only this file knows Cog.

Cog parses this file without running it, for the web form and the API's schema: Input(...) takes plain literals only,
and a description must be one string. Cog cancels a prediction with an exception that ends predict() at any point, even
in a `finally`, while the prediction's own thread runs on to its next step. So each prediction starts by cleaning up,
instead of ending with it.
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

COGLET = LocalPath("/tmp/coglet/predictions")  # noqa: S108  Cog makes a folder for each prediction there
SIZES = [
    128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152, 1216, 1280, 1344, 1408, 1472,
    1536,
]  # fmt: skip


class Predictor(BasePredictor):
    """Stable Diffusion with aesthetic gradients."""

    def setup(self) -> None:
        """Load the model from local files, and warm up for the form's defaults."""
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
        # Cog, too, downloads inputs to this folder before it calls predict. A cleaner of /tmp may remove the folder, and
        # tempfile.tempdir could not replace it.
        tempfile.gettempdir = self._temporary_folder

    def healthcheck(self) -> bool:
        """Whether the model can still draw. Tests only an idle GPU: a busy one would miss Cog's limit of 5 seconds."""
        return self.predictions.is_busy() or self.service.is_healthy()

    def predict(
        self,
        prompt: str = Input(default="a painting of a virus monster playing guitar", max_length=2000,
            description="What to draw. Only the first 75 tokens (about 50 words) are read, unless long_prompt is set."),
        negative_prompt: str = Input(default="", max_length=2000, description="What to keep out of the image."),
        aesthetic_embedding: Optional[str] = Input(default=None, choices=[
            "sac_8plus", "laion_7plus", "aivazovsky", "cloudcore", "gloomcore", "glowwave", "fantasy", "flower_plant",
            "ink", "blueprint", "neon", "night", "sepia", "pixel", "watercolour", "pop", "chalk", "sunset", "gold"],
            description="Named aesthetic (the mean CLIP embedding of a set of images) to steer towards. The first eight are for Stable Diffusion, the others, from ink on, for the demo. Blank: your mix, file or images, else the model's default, sac_8plus or gold."),
        aesthetic_steps: int = Input(default=10, ge=0, le=100,
            description="How many optimization steps to take towards the aesthetic. Start with 2 or 3, then try 5, 10, 15, 20: more steps give more of the aesthetic and less of the prompt. 0 uses the plain model."),
        aesthetic_lr: float = Input(default=0.0001, ge=0, le=0.1,
            description="Learning rate of the aesthetic steps. 0.0001 suits most prompts; change aesthetic_steps first."),
        aesthetic_embedding_file: Optional[Path] = Input(default=None,
            description="An aesthetic of your own: a .pt or .safetensors file (embeddings/README.md says how to make one)."),
        aesthetic_images: Optional[Path] = Input(default=None,
            description="Images you like, to make an aesthetic from for this prediction: one image, or a zip or tar of up to 500."),
        image: Optional[Path] = Input(default=None,
            description="An image to start from (img2img). It is scaled and cropped to fit into width × height."),
        mask: Optional[Path] = Input(default=None,
            description="Inpainting mask for image: white is redrawn, black is kept. Same aspect ratio as image."),
        prompt_strength: float = Input(default=0.8, ge=0, le=1,
            description="How much of image to redraw: below 0.3 changes little, 1 draws from noise alone."),
        width: int = Input(default=512, choices=SIZES,
            description="Width in pixels: at most 1024, and width × height at most 1024 × 768. Stable Diffusion XL draws best at 1024 × 1024 or in as many pixels, up to 1536 wide."),
        height: int = Input(default=512, choices=SIZES,
            description="Height in pixels: at most 1024, and width × height at most 1024 × 768. Stable Diffusion XL draws best at 1024 × 1024 or in as many pixels, up to 1536 high."),
        num_outputs: int = Input(default=1, ge=1, le=8,
            description="How many images to draw. Each uses the seed after the one before it."),
        num_inference_steps: int = Input(default=50, ge=1, le=500,
            description="How many denoising steps to take. More take longer and add detail. PNDM needs at least 3, HeunDiscrete 5, DPMSolverMultistep and KarrasDPM 1, the others 2."),
        guidance_scale: float = Input(default=7.5, ge=1, le=30,
            description="How closely to follow the prompt (classifier-free guidance). 1 turns guidance off."),
        scheduler: str = Input(default="PNDM", choices=[
            "PNDM", "DDIM", "DPMSolverMultistep", "K_EULER", "K_EULER_ANCESTRAL", "KLMS", "HeunDiscrete", "KarrasDPM"],
            description="The sampler: the method that turns noise into an image, step by step. PNDM is the original code's --plms; DPMSolverMultistep and KarrasDPM need fewer steps, about 20."),
        seed: Optional[int] = Input(default=None, ge=0, le=4294967295,
            description="The same seed and settings draw the same image. Blank: a random seed, shown in the log and stored in the image."),
        disable_safety_checker: bool = Input(default=False,
            description="Return images that the safety checker would block."),
        output_format: str = Input(default="png", choices=["png", "webp", "jpg"],
            description="png is lossless, webp and jpg are smaller. Each file stores the settings that made the image."),
        output_quality: int = Input(default=90, ge=1, le=100,
            description="Quality of webp and jpg: higher looks better and takes more space. No effect on png."),
        aesthetic_sweep: Optional[str] = Input(default=None, max_length=100,
            description="Up to 12 rising numbers of steps to compare, such as 0,2,5,10,20: draws an image for each from the same noise, then a contact sheet of them all. Replaces aesthetic_steps."),
        aesthetic_until: Optional[float] = Input(default=None, ge=0, le=2,
            description="Stop early, once the cosine similarity of prompt and aesthetic has risen by this much, such as 0.1. Prompts respond at different speeds, and this one setting suits all. aesthetic_steps is then the maximum."),
        aesthetic_mix: Optional[str] = Input(default=None, max_length=1000,
            description="Up to 16 aesthetics with weights, in place of one: fantasy:0.7 gloomcore:0.5 laion_7plus:-0.2. A negative weight steers away from that aesthetic."),
        aesthetic_weight: float = Input(default=1.0, ge=0, le=1,
            description="How much of the aesthetic's effect to keep: 0 draws from the prompt alone, 1 from the prompt as personalized by all aesthetic_steps, and values in between blend the two."),
        aesthetic_slerp: bool = Input(default=False,
            description="How aesthetic_weight blends: by spherical interpolation (slerp) of each token's vector if true, linearly if false. No effect at weights of 0 and 1."),
        aesthetic_text: str = Input(default="", max_length=2000,
            description="A phrase that adjusts the aesthetic, such as: bright colors. It turns the aesthetic towards the phrase's CLIP embedding and does not change the prompt."),
        aesthetic_text_angle: float = Input(default=0.2, ge=0, le=1,
            description="How far aesthetic_text turns the aesthetic: 0 not at all, 1 all the way, so that only the phrase is left."),
        aesthetic_text_negative: bool = Input(default=False,
            description="Turn the aesthetic away from aesthetic_text, not towards it."),
        long_prompt: bool = Input(default=False,
            description="Read prompts of more than 75 tokens in full, in chunks, and apply weights such as (red:1.3). Otherwise longer prompts are cut off and parentheses are plain text, as in the original code."),
        lora: Optional[Path] = Input(default=None,
            description="A LoRA, which adds a trained style or subject to the model: a .safetensors file made for this kind of model (usually Stable Diffusion 1.5). The aesthetic works on top of it."),
        lora_scale: float = Input(default=1.0, ge=0, le=2,
            description="Strength of the LoRA: 1 is as trained, less softens it, 0 leaves it out."),
        n_samples: Optional[int] = Input(default=None, ge=1, le=8, deprecated=True,
            description="Old name of num_outputs."),
        scale: Optional[float] = Input(default=None, ge=1, le=30, deprecated=True,
            description="Old name of guidance_scale."),
        ddim_steps: Optional[int] = Input(default=None, ge=1, le=500, deprecated=True,
            description="Old name of num_inference_steps."),
        plms: Optional[bool] = Input(default=None, deprecated=True,
            description="Old way to choose the scheduler: true is PNDM, false is DDIM."),
    ) -> List[Path]:  # fmt: skip
        """Draw, and return the images in order."""
        inputs = {name: value for name, value in locals().items() if name != "self"}
        paths, result = self.predictions.make(self._draw, inputs, self._fresh_folder(inputs.values()))
        for name, value in result.metrics.items():
            self.record_metric(name, value)
        return [Path(path) for path in paths]

    def _temporary_folder(self) -> str:
        """The folder for all temporary files, made anew if a cleaner of /tmp has removed it.

        The new one has another name: other users may have taken the old one, and a prediction empties this folder.
        """
        if not _is_safe(self.temporary):
            parent = next(filter(_is_safe, self.temporary.parents))
            self.temporary = LocalPath(tempfile.mkdtemp(prefix="aesthetic-", dir=parent))
        return str(self.temporary)

    def _draw(self, inputs: Dict[str, Any], folder: LocalPath) -> "Tuple[List[LocalPath], Result]":
        try:
            return self.service.predict(Request.from_inputs(**inputs), folder)
        except AestheticError:
            raise  # without a traceback in the log: Cog shows the message
        except Exception:
            check()  # no failure if it was canceled: the next prediction may have deleted its files
            log.exception("The prediction failed")
            raise

    def _fresh_folder(self, inputs: Iterable[Any]) -> LocalPath:
        """An empty folder for this prediction's images. Removes all temporary files except its inputs.

        Cog reads the images after predict has returned, and never deletes them or its failed downloads.
        """
        kept = {given for given in inputs if isinstance(given, LocalPath)}
        for path in set(LocalPath(tempfile.gettempdir()).iterdir()) - kept:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return LocalPath(tempfile.mkdtemp())


def _is_safe(folder: LocalPath) -> bool:
    """Whether this is a folder, not a link, that belongs to this user or to root."""
    with suppress(OSError):
        state = folder.lstat()
        return stat.S_ISDIR(state.st_mode) and state.st_uid in (0, os.geteuid())
    return False


def require_writable(folder: LocalPath) -> None:
    """Raise SettingError if this user can't make the folders of predictions in `folder`."""
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
    """Remove the empty folders that Cog made in `folder` for this user after the time `since`, and did not remove."""
    with suppress(OSError):
        for prediction in folder.iterdir():
            state = prediction.stat()
            if state.st_mtime >= since and state.st_uid == os.geteuid():
                for path in (prediction / "inputs", prediction / "outputs", prediction):
                    with suppress(OSError):
                        path.rmdir()
        folder.rmdir()
        folder.parent.rmdir()
