"""What scores the images of an evaluation: the protocol, and the judge that every CLIP model comes with.

A judge gives an image one number per measure, for each aesthetic. The report needs no more than the measures' names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from ..embeddings.embedding import Aesthetic
from ..errors import CheckpointError
from ..gradient import similarity
from ..models.loading import Model
from ..pipeline import prompt
from .aesthetic_score import Predictor
from .results import Measure

__all__ = ["ClipJudge", "Judge"]


class Judge(Protocol):
    """What scores images."""

    @property
    def measures(self) -> Sequence[Measure]:
        """What it measures: first what steps should raise, then what they should not lose, then any others."""

    @property
    def explanation(self) -> str:
        """Markdown paragraphs for the report: what the numbers are and how to read them."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the numbers depend on, for settings.json."""

    def score(
        self, model: Model, image: Image.Image, text: str, aesthetics: Mapping[str, Aesthetic]
    ) -> Mapping[str, Sequence[float]]:
        """The numbers of an image that `model` drew of the prompt `text`, in the order of `measures`, by aesthetic."""


@dataclass(frozen=True, kw_only=True)
class ClipJudge:
    """The untouched CLIP of the model: cosines with the aesthetic and the prompt, and LAION's score.

    predictor: LAION's; None leaves the score out.
    """

    predictor: Predictor | None

    @property
    def measures(self) -> Sequence[Measure]:
        """Two cosines, and with the predictor a score."""
        return CLIP_MEASURES if self.predictor is None else (*CLIP_MEASURES, SCORE)

    @property
    def explanation(self) -> str:
        """How to read them."""
        return COSINES if self.predictor is None else f"{COSINES}\n\n{SCORES}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The digest of the predictor."""
        return {} if self.predictor is None else {"predictor": self.predictor.sha256}

    def score(
        self, model: Model, image: Image.Image, text: str, aesthetics: Mapping[str, Aesthetic]
    ) -> Mapping[str, Sequence[float]]:
        """As `Judge.score`. Raises CheckpointError if the model has no vision tower."""
        if model.vision is None:
            raise CheckpointError(f"{model.snapshot.name} has no vision tower (image_encoder) to score images with")
        features = model.vision.features([model.vision.prepare(image)]).cpu()
        tokens = prompt.tokenize_prompt(model.pipeline.tokenizer, text, model.device)
        to_prompt = similarity(features, prompt.embed(model, tokens).cpu()).item()
        score = [] if self.predictor is None else [self.predictor.score(features)]
        return {
            name: [similarity(features, aesthetic.vector).item(), to_prompt, *score]
            for name, aesthetic in aesthetics.items()
        }


CLIP_MEASURES = (
    Measure(
        column="similarity_to_aesthetic",
        title="to the aesthetic",
        change="gain",
        heading="Closer to the aesthetic",
        axis="gain in similarity to the aesthetic",
        unit="cosine",
    ),
    Measure(
        column="similarity_to_prompt",
        title="to the prompt",
        change="loss",
        heading="Farther from the prompt",
        axis="loss of similarity to the prompt",
        unit="cosine",
        is_loss=True,
    ),
)
SCORE = Measure(
    column="score",
    title="LAION score",
    change="rise",
    heading="Liked more, says LAION's predictor",
    axis="rise of LAION's score",
    unit="score",
)
COSINES = (
    "Cosine similarities by the model's untouched CLIP. *Gain* is how much closer to the aesthetic an image is than "
    "the one of 0 steps, of the same prompt and seed; *loss* is how much farther from the prompt."
)
SCORES = (
    "*LAION score* is what people would give an image, from 1 to 10, by LAION's aesthetic predictor, which sees it "
    "through the same CLIP and knows neither aesthetic nor prompt; *rise* is its change from 0 steps."
)
