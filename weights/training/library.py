"""All images that the trainings see, with their captions; drawn from the SVGs in a minute.

A picture is a composition (one emoji, one in a colour, several, or two different ones) by an artist in a style.
What there is to draw (`plan`) is the same on every machine; the pixels are drawn on the device, and kept there.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import captions, styles
from .settings import LIBRARY, PROMPTS, TOKENS, WORK
from .sources import Emoji

__all__ = ["Library", "Picture", "held_out", "plan"]

FLAT = ("noto", "noto-v1", "fluent-emoji-flat", "fxemoji", "twemoji")
DRAWN_BY = {"flat": FLAT, "glossy": ("fluent-emoji",), "ink": ("fluent-emoji-high-contrast",)}
ANY = (*FLAT, "fluent-emoji")  # for the derived styles
CHUNK = 64
OBJECTS = (3, 4, 5, 6, 7)  # groups of emojibase without people and faces
# Corner and side of each copy, in shares of the picture.
LAYOUTS: dict[int, list[tuple[float, float, float]]] = {
    1: [(0.0, 0.0, 1.0)],
    2: [(0.0, 0.25, 0.5), (0.5, 0.25, 0.5)],
    3: [(0.25, 0.0, 0.5), (0.0, 0.5, 0.5), (0.5, 0.5, 0.5)],
    4: [(0.0, 0.0, 0.5), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5), (0.5, 0.5, 0.5)],
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What one picture shows, and its captions: half without, half with the style's words.

    subjects: numbers of emoji, one for each place of the layout; artist: who drew them.
    """

    subjects: tuple[int, ...]
    artist: str
    style: str
    captions: tuple[str, ...]
    colour: str | None = None

    @property
    def is_single(self) -> bool:
        """One emoji in its own colours."""
        return len(self.subjects) == 1 and self.colour is None


def held_out(emoji: Sequence[Emoji]) -> set[int]:
    """The numbers of the emoji that no training sees."""
    fit = [i for i, one in enumerate(emoji) if one.label not in PROMPTS]
    return set(random.Random(LIBRARY.seed).sample(fit, LIBRARY.held_out))


def plan(emoji: Sequence[Emoji]) -> list[Picture]:
    """Every picture of the library."""
    rng = random.Random(LIBRARY.seed)
    return [*_singles(emoji, rng), *_coloured(emoji, rng), *_counted(emoji, rng), *_pairs(emoji, rng)]


class Library:
    """The pictures on a device.

    pictures: what they show.
    large:    uint8 [pictures, 3, 512, 512].
    """

    def __init__(self, emoji: Sequence[Emoji], device: torch.device, pictures: Sequence[Picture] | None = None) -> None:
        """Draw `pictures`, or the whole plan. 512 × 512 × 3 bytes each, on the device."""
        self.device = device
        self.emoji = emoji
        self.pictures = list(pictures or plan(emoji))
        self.large = torch.empty(len(self.pictures), 3, LIBRARY.size, LIBRARY.size, dtype=torch.uint8, device=device)
        drawings = _Drawings(emoji, {(s, p.artist) for p in self.pictures for s in p.subjects}, device)
        generator = torch.Generator().manual_seed(LIBRARY.seed)
        for style, which in tqdm(list(_alike(self.pictures)), desc="Drawing the library", unit=f" × {CHUNK} pictures"):
            drawn = styles.apply(style, drawings.compose([self.pictures[i] for i in which]), generator)
            self.large[torch.tensor(which, device=device)] = (drawn * 255).round().byte()

    @cached_property
    def small(self) -> Tensor:
        """All pictures at 128 × 128, uint8."""
        parts = [
            F.interpolate(part.float(), (LIBRARY.small,) * 2, mode="area").round().byte()
            for part in torch.split(self.large, 512)
        ]
        return torch.cat(parts)

    @cached_property
    def style(self) -> Tensor:
        """The number of each picture's style."""
        return torch.tensor([captions.STYLES.index(p.style) for p in self.pictures], device=self.device)

    @cached_property
    def tokens(self) -> Tensor:
        """Token ids of every caption [pictures, captions, 77]."""
        from transformers import CLIPTokenizer

        clip = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
        texts = [caption for p in self.pictures for caption in p.captions]
        ids = clip(texts, padding="max_length", max_length=TOKENS, truncation=True).input_ids
        return torch.tensor(ids, device=self.device).view(len(self.pictures), LIBRARY.captions, TOKENS)

    def select(self, held: bool) -> Tensor:
        """Numbers of the pictures that trainings see, or of those of the subjects that are held out."""
        out = held_out(self.emoji)
        chosen = [i for i, p in enumerate(self.pictures) if held == bool(out.intersection(p.subjects))]
        return torch.tensor(chosen, device=self.device)


class _Drawings:
    """The rasterised emoji [4, 512, 512] that are needed, in bytes on the device."""

    def __init__(self, emoji: Sequence[Emoji], wanted: Iterable[tuple[int, str]], device: torch.device) -> None:
        self.device = device
        order = sorted(wanted)
        self.number = {key: i for i, key in enumerate(order)}
        self.bytes = torch.empty(len(order), 4, LIBRARY.size, LIBRARY.size, dtype=torch.uint8, device=device)
        with ProcessPoolExecutor() as pool:
            rasters = pool.map(_rasterise, (emoji[subject].svgs[artist] for subject, artist in order), chunksize=16)
            for i, raster in enumerate(tqdm(rasters, total=len(order), desc="Rasterising", unit=" drawings")):
                self.bytes[i] = torch.from_numpy(raster).to(device).permute(2, 0, 1)

    def compose(self, pictures: Sequence[Picture]) -> Tensor:
        """RGBA [N, 4, 512, 512] of pictures that have equally many places each."""
        [places] = {len(picture.subjects) for picture in pictures}
        size = LIBRARY.size
        canvas = torch.zeros(len(pictures), 4, size, size, device=self.device)
        for place, (left, top, side) in enumerate(LAYOUTS[places]):
            which = [self.number[picture.subjects[place], picture.artist] for picture in pictures]
            drawn = self.bytes[torch.tensor(which, device=self.device)].float() / 255
            x, y, pixels = (round(share * size) for share in (left, top, side))
            canvas[:, :, y : y + pixels, x : x + pixels] = F.interpolate(drawn, (pixels, pixels), mode="area")
        for i, picture in enumerate(pictures):
            if picture.colour is not None:
                canvas[i : i + 1] = _coloured_in(canvas[i : i + 1], captions.COLOURS[picture.colour])
        return canvas


def _alike(pictures: Sequence[Picture]) -> Iterator[tuple[str, list[int]]]:
    """The numbers of pictures of one style and layout, CHUNK at a time."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, picture in enumerate(pictures):
        groups.setdefault((picture.style, len(picture.subjects)), []).append(i)
    for (style, _), which in sorted(groups.items()):
        for start in range(0, len(which), CHUNK):
            yield style, which[start : start + CHUNK]


def _rasterise(svg: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """RGBA [512, 512, 4], with a margin of a sixteenth."""
    import resvg_py

    inner = LIBRARY.size * 7 // 8
    margin = (LIBRARY.size - inner) // 2
    canvas = Image.new("RGBA", (LIBRARY.size, LIBRARY.size))
    with Image.open(BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=inner, height=inner)))) as drawing:
        canvas.paste(
            drawing.convert("RGBA"), (margin + (inner - drawing.width) // 2, margin + (inner - drawing.height) // 2)
        )
    return np.array(canvas)


def _coloured_in(drawings: Tensor, colour: tuple[float, float, float]) -> Tensor:
    """The same light and shade in one hue: from near black through the colour to near white."""
    weights = torch.tensor(styles.LUMA, device=drawings.device)[None, :, None, None]
    luma = (drawings[:, :3] * weights).sum(1, keepdim=True)
    full = torch.tensor(colour, device=drawings.device)[None, :, None, None]
    dark, light = (luma / 0.55).clamp(max=1), ((luma - 0.55) / 0.45).clamp(min=0)
    return torch.cat([full * (0.15 + 0.85 * dark) * (1 - 0.75 * light) + 0.75 * light, drawings[:, 3:]], 1)


def _artists(emoji: Emoji, style: str) -> list[str]:
    return [artist for artist in DRAWN_BY.get(style, ANY) if artist in emoji.svgs]


def _singles(emoji: Sequence[Emoji], rng: random.Random) -> Iterator[Picture]:
    for i, one in enumerate(emoji):
        noun = captions.with_article(one.label)
        for style in captions.STYLES:
            artists = _artists(one, style)
            if style not in DRAWN_BY:
                artists = rng.sample(artists, min(len(artists), LIBRARY.drawings))
            for artist in artists:
                words = captions.captions(noun, one.label.lower(), one.tags, style, rng)
                yield Picture(subjects=(i,), artist=artist, style=style, captions=tuple(words))


def _some(emoji: Sequence[Emoji], count: int, rng: random.Random) -> list[int]:
    """Things and animals with short names that say nothing of colours."""
    fit = [
        i
        for i, one in enumerate(emoji)
        if one.group in OBJECTS and len(one.label.split()) <= 2 and not captions.colour_of(one.label)
    ]
    return sorted(rng.sample(fit, min(count, len(fit))))


def _drawn(emoji: Sequence[Emoji], subjects: Sequence[int], rng: random.Random) -> tuple[str, str]:
    """A style, and an artist who drew all subjects."""
    style = rng.choice(captions.STYLES)
    shared = [
        artist for artist in _artists(emoji[subjects[0]], style) if all(artist in emoji[s].svgs for s in subjects)
    ]
    return (style, rng.choice(shared)) if shared else _drawn(emoji, subjects, rng)


def _coloured(emoji: Sequence[Emoji], rng: random.Random) -> Iterator[Picture]:
    colourless = {"ink", "blueprint", "sepia", "pop", "sunset", "gold"}
    for i in _some(emoji, LIBRARY.coloured, rng):
        for colour in captions.COLOURS:
            for n in range(LIBRARY.colour_styles):
                style, artist = _drawn(emoji, (i,), rng)
                if n == 0 or style in colourless:  # a style that shows colours
                    style, artist = "flat", rng.choice(_artists(emoji[i], "flat"))
                bare = f"{colour} {emoji[i].label.lower()}"
                words = captions.captions(captions.with_article(bare), bare, (), style, rng)
                yield Picture(subjects=(i,), artist=artist, style=style, captions=tuple(words), colour=colour)


def _counted(emoji: Sequence[Emoji], rng: random.Random) -> Iterator[Picture]:
    for i in _some(emoji, LIBRARY.counted, rng):
        for number in captions.NUMBERS:
            for _ in range(LIBRARY.count_styles):
                style, artist = _drawn(emoji, (i,), rng)
                noun = captions.counted(emoji[i].label, number)
                words = captions.captions(noun, noun, (), style, rng)
                yield Picture(subjects=(i,) * number, artist=artist, style=style, captions=tuple(words))


def _pairs(emoji: Sequence[Emoji], rng: random.Random) -> Iterator[Picture]:
    fit = _some(emoji, len(emoji), rng)
    for _ in range(LIBRARY.pairs):
        first, second = rng.sample(fit, 2)
        style, artist = _drawn(emoji, (first, second), rng)
        noun = captions.both(emoji[first].label, emoji[second].label)
        words = captions.captions(noun, noun, (), style, rng)
        yield Picture(subjects=(first, second), artist=artist, style=style, captions=tuple(words))
