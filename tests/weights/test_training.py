"""The training of the demo model, as far as a CPU gets in seconds: the images, the words, and first steps."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from weights.training import captions, clip, export, judge, library, loop, settings, styles, tokenizer, unet, vae
from weights.training.sources import ARTISTS, Emoji

SHAPES = (
    "<circle cx='9' cy='9' r='7' {}/>",
    "<rect x='2' y='4' width='14' height='9' {}/>",
    "<path d='M9 1l8 16H1z' {}/>",
)
COLOURS = ("red", "blue", "green", "orange")
SIZE = 128  # pixels


@pytest.fixture(scope="module")
def emoji() -> list[Emoji]:
    """A few shapes in a few colours; the first have the names that the judges are asked for."""
    return [
        Emoji(
            label=label,
            group=5,
            tags=("shape", "thing"),
            svgs={artist: _svg(i) for artist in ARTISTS},
        )
        for i, label in enumerate([*settings.PROMPTS, *(f"thing {i}" for i in range(30))])
    ]


def _svg(i: int) -> str:
    shape = SHAPES[i % 3].format(f"fill='{COLOURS[i % 4]}'")
    return f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'>{shape}</svg>"


@pytest.fixture(scope="module")
def pictures(emoji: list[Emoji]) -> list[library.Picture]:
    return library.plan(emoji)


@pytest.fixture(scope="module")
def drawn(emoji: list[Emoji], pictures: list[library.Picture], work: Path) -> library.Library:
    """A handful of the plan: of each style, of each layout, of held-out subjects and of the prompts."""
    out = library.held_out(emoji)
    singles = [picture for picture in pictures if picture.is_single]
    chosen = [next(p for p in singles if p.style == style) for style in captions.STYLES]
    chosen += [next(p for p in singles if p.subjects[0] in out)]
    chosen += [next(p for p in singles if p.subjects[0] == i and p.style == "ink") for i in range(25)]
    chosen += [next(p for p in pictures if len(p.subjects) == count and p.style == "flat") for count in (2, 3, 4)]
    chosen += [next(p for p in pictures if p.colour == "blue" and p.style == "flat")]
    return library.Library(emoji, torch.device("cpu"), chosen)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, pictures: list[library.Picture]) -> Any:
    """A folder in place of WORK, with a tokenizer. Batches are small, and images a sixteenth of their size."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        for module in (library, clip, vae, unet, export):
            patch.setattr(module, "WORK", folder)
        patch.setattr(library, "LIBRARY", replace(settings.LIBRARY, size=SIZE))
        patch.setattr(unet, "STATE", folder / "unet.pt")
        patch.setattr(judge, "FOLDER", folder / "judges")
        patch.setattr(clip, "CLIP", replace(settings.CLIP, batch=8))
        patch.setattr(vae, "VAE", replace(settings.VAE, batch=1))
        patch.setattr(unet, "UNET", replace(settings.UNET, batch=2))
        patch.setattr(unet, "MEASURED", 2)
        patch.setattr(judge, "JUDGE", replace(settings.JUDGE, batch=8))
        tokenizer.train(_sentences(pictures), folder / "tokenizer")
        yield folder


def _sentences(pictures: list[library.Picture]) -> list[str]:
    """The captions, and enough made-up words for the whole vocabulary."""
    rng = random.Random(0)
    made_up = ("".join(rng.choices("abcdefgh", k=7)) for _ in range(3000))
    return [
        *(caption for picture in pictures for caption in picture.captions),
        *(word for w in made_up for word in (w, w)),
    ]


def test_the_plan_is_the_same_every_time_and_names_what_it_shows(
    emoji: list[Emoji], pictures: list[library.Picture]
) -> None:
    assert pictures == library.plan(emoji)
    for picture in pictures[::50]:
        plain, styled = picture.captions[:4], picture.captions[4:]
        phrase = captions.PHRASES[picture.style]
        assert all(any(word in caption for word in phrase) for caption in styled)
        assert not any(phrase[0] in caption for caption in plain)
        assert picture.artist in emoji[picture.subjects[0]].svgs


def test_captions_speak_english() -> None:
    assert captions.with_article("owl") == "an owl"
    assert captions.with_article("cherries") == "cherries"
    assert captions.counted("fish cake", 3) == "three fish cakes"
    assert captions.both("cat", "Owl") == "a cat and an owl"
    assert captions.colour_of("blue book") == "blue"
    assert captions.colour_of("castle") is None


def test_every_style_draws_what_no_other_does() -> None:
    drawing = torch.zeros(1, 4, 512, 512)
    drawing[:, 0, 100:400, 100:400] = drawing[:, 3, 100:400, 100:400] = 1
    looks = [
        styles.apply(style, drawing, torch.Generator().manual_seed(0))
        for style in captions.STYLES
        if style not in ("glossy", "ink")  # which are artists of their own
    ]
    for i, look in enumerate(looks):
        assert look.shape == (1, 3, 512, 512)
        assert look.isfinite().all()
        assert all((look - other).abs().mean() > 0.03 for other in looks[:i])


def test_colours_and_counts_are_what_the_captions_say(drawn: library.Library) -> None:
    blue = drawn.large[-1].float().mean((1, 2))
    assert blue[2] > blue[0]
    four = next(i for i, p in enumerate(drawn.pictures) if len(p.subjects) == 4)
    quarters = drawn.large[four].unfold(1, SIZE // 2, SIZE // 2).unfold(2, SIZE // 2, SIZE // 2)
    assert drawn.pictures[four].captions[0].startswith("four ")
    assert len({quarters[:, y, x].float().std().round().item() for y in (0, 1) for x in (0, 1)}) <= 2


def test_the_tokenizer_is_deterministic_and_one_of_clips(
    work: Path, pictures: list[library.Picture], tmp_path: Path
) -> None:
    tokenizer.train(_sentences(pictures), tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (work / "tokenizer" / name).read_bytes()
    clips = CLIPTokenizer.from_pretrained(work / "tokenizer")
    ids = clips("A Castle, an ink drawing").input_ids
    assert (ids[0], ids[-1]) == (settings.VOCABULARY - 2, settings.VOCABULARY - 1)
    assert clips.decode(ids, skip_special_tokens=True) == "a castle , an ink drawing"


def test_the_learning_rate_rises_stays_and_sinks() -> None:
    rates = [loop.rate_at(step, 1000, 100) for step in range(1000)]
    assert rates[0] == 0.01
    assert rates[99:400] == [1.0] * 301
    assert rates[400:] == sorted(rates[400:], reverse=True)
    assert rates[-1] < 1e-4


def test_all_parts_train_and_become_a_snapshot(drawn: library.Library, work: Path, tmp_path: Path) -> None:
    """One or two steps each, so what they learn is not tested: they train, the UNet resumes, and they fit together."""
    from diffusers import StableDiffusionPipeline

    assert clip.train(drawn, 2)["gap"] > 0
    assert vae.train(drawn, 1)["psnr"] > 0
    assert unet.train(drawn, 1)["loss"] == pytest.approx(1, abs=0.3)
    assert unet.train(drawn, 2)["steps"] == 2
    export.export(tmp_path)
    weights = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert weights < 47_500_000
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    latents = pipe("a castle", num_inference_steps=1, output_type="latent").images
    assert latents.shape == (1, 8, 32, 32)
    assert {parameter.dtype for parameter in pipe.text_encoder.parameters()} == {torch.float32}


def test_the_judges_are_read_as_they_were_written(drawn: library.Library, work: Path) -> None:
    accuracy = judge.train(drawn, 2)
    judges = judge.Judges.load(work / "judges")
    assert judges.accuracy == accuracy
    assert judges.prompts == judges.subjects[:25] == settings.PROMPTS
    chances = judges.style_probabilities(drawn.large[:3])
    assert torch.allclose(chances.sum(1), torch.ones(3))
    assert judges.subject_scores(drawn.large[:3]).shape == (3, len(judges.subjects))
