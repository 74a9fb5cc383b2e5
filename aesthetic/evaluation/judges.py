"""What scores the images of an evaluation, and the judge that every CLIP model comes with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from ..embeddings.embedding import Aesthetic
from ..errors import CheckpointError
from ..gradient import similarity
from ..models.loading import Model
from ..pipeline import prompt
from .aesthetic_score import Predictor
from .results import Measure

__all__ = ["CLIP_MEASURES", "SCORE", "Judge", "clip_judge"]

CLIP_MEASURES = (
    Measure(
        column="similarity_to_aesthetic",
        title="to the aesthetic",
        change="gain",
        axis="gain in similarity to the aesthetic",
    ),
    Measure(
        column="similarity_to_prompt",
        title="to the prompt",
        change="loss",
        axis="loss of similarity to the prompt",
        is_loss=True,
    ),
)
SCORE = Measure(column="score", title="LAION score", change="rise", axis="rise of LAION's score")
COSINES = (
    "Cosine similarities by the model's untouched CLIP. *Gain* is how much closer to the aesthetic an image is than "
    "the one of 0 steps, of the same prompt and seed; *loss* is how much farther from the prompt."
)
SCORES = (
    "*LAION score* is the score that people would give an image, from 1 to 10, by LAION's aesthetic predictor, which "
    "sees it through the same CLIP and knows neither aesthetic nor prompt; *rise* is its change from 0 steps."
)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What scores images.

    measures:    first the measure that steps should raise, then what they should not lower, then any others.
    explanation: Markdown paragraphs for the report: what the numbers are and how to read them.
    settings:    what the numbers depend on, for settings.json.
    score:       from a model, an image that it drew, its prompt, and aesthetics by name, the numbers of the image for
                 each aesthetic, in the order of `measures`.
    """

    measures: Sequence[Measure]
    explanation: str
    settings: Mapping[str, Any]
    score: Callable[[Model, Image.Image, str, Mapping[str, Aesthetic]], Mapping[str, Sequence[float]]]


def clip_judge(predictor: Predictor | None) -> Judge:
    """The model's untouched CLIP: cosines with the aesthetic and the prompt, and LAION's score if `predictor` is given.

    Its `score` raises CheckpointError if the model has no vision tower.
    """
    return Judge(
        measures=CLIP_MEASURES if predictor is None else (*CLIP_MEASURES, SCORE),
        explanation=COSINES if predictor is None else f"{COSINES}\n\n{SCORES}",
        settings={} if predictor is None else {"predictor": predictor.sha256},
        score=partial(_score, predictor),
    )


def _score(
    predictor: Predictor | None, model: Model, image: Image.Image, text: str, aesthetics: Mapping[str, Aesthetic]
) -> Mapping[str, Sequence[float]]:
    if model.vision is None:
        raise CheckpointError(f"{model.snapshot.name} has no vision tower (image_encoder) to score images with")
    features = model.vision.features([model.vision.prepare(image)]).cpu()
    tokens = prompt.tokenize_prompt(model.pipeline.tokenizer, text, model.device)
    to_prompt = similarity(features, prompt.embed(model, tokens).cpu()).item()
    score = [] if predictor is None else [predictor.score(features)]
    return {name: [similarity(features, one.vector).item(), to_prompt, *score] for name, one in aesthetics.items()}
