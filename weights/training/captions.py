"""Words for pictures: the same for all drawings of a subject, with or without those of the style.

A caption with the style's words draws in that style; one without, in any. Tags stand beside the name now and
then, so that other words of users meet something.
"""

import random
from collections.abc import Sequence

import inflect

from .settings import LIBRARY

__all__ = [
    "AESTHETICS",
    "COLOURS",
    "NUMBERS",
    "PHRASES",
    "STYLES",
    "both",
    "captions",
    "colour_of",
    "counted",
    "with_article",
]

# How users name a style: as a noun phrase, and as an adjective.
PHRASES = {
    "flat": ("a flat icon", "flat"),
    "glossy": ("a glossy 3d render", "glossy 3d"),
    "ink": ("an ink drawing", "ink"),
    "blueprint": ("a blueprint", "blueprint"),
    "neon": ("a neon sign", "neon"),
    "night": ("a night scene", "night"),
    "sepia": ("a sepia print", "sepia"),
    "pixel": ("pixel art", "pixel"),
    "watercolour": ("a watercolour", "watercolor"),
    "pop": ("pop art", "pop art"),
    "chalk": ("a chalk drawing", "chalk"),
    "sunset": ("a sunset print", "sunset"),
    "gold": ("a gold relief", "gold relief"),
}
STYLES = tuple(PHRASES)
AESTHETICS = STYLES[2:]  # flat and glossy are emoji as they are
COLOURS = {
    "red": (0.88, 0.14, 0.14),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.98, 0.83, 0.12),
    "green": (0.20, 0.65, 0.25),
    "blue": (0.15, 0.38, 0.85),
    "purple": (0.52, 0.23, 0.75),
    "pink": (0.96, 0.48, 0.70),
    "brown": (0.48, 0.29, 0.16),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}
_english = inflect.engine()


def with_article(label: str) -> str:
    """Put "a" or "an" before a label; a plural stays as it is."""
    label = label.lower()
    last = label.split()[-1]
    plural = last.endswith("s") and not last.endswith("ss") and _english.singular_noun(last)
    return label if plural else _english.a(label)


def counted(label: str, number: int) -> str:
    """The label in the plural, with the number in words: three castles."""
    return f"{NUMBERS[number]} {_english.plural_noun(label.lower())}"


def both(first: str, second: str) -> str:
    """Two different subjects: a cat and a dog."""
    return f"{with_article(first)} and {with_article(second)}"


def colour_of(label: str) -> str | None:
    """The colour that a label names itself, if any."""
    return next((word for word in label.lower().split() if word in COLOURS or word in ("black", "white")), None)


def captions(noun: str, bare: str, tags: Sequence[str], style: str, rng: random.Random) -> list[str]:
    """LIBRARY.captions ways to caption a picture: the first half plain, the second with the style's words.

    noun: with its article or number ("a castle"); bare: without it ("castle").
    """
    phrase, adjective = PHRASES[style]
    tag, other = (rng.choice(tags or ["emoji"]) for _ in range(2))
    plain = [
        noun,
        noun,
        rng.choice([bare, f"a picture of {noun}"]),
        rng.choice([f"{noun}, {tag}", f"{tag}, {other}, {bare}"]),
    ]
    styled = [
        f"{noun}, {phrase}",
        f"{phrase} of {noun}",
        f"{noun} in {adjective} style",
        rng.choice([f"{adjective} {bare}", f"{noun}, {tag}, {phrase}"]),
    ]
    assert len(plain) + len(styled) == LIBRARY.captions
    return plain + styled
