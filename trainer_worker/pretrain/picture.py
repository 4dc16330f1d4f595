"""Define what every source of training pictures yields."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

GRID = 6
SIDE = 84

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 150, 40),
    "blue": (35, 60, 220),
    "yellow": (245, 225, 30),
    "orange": (250, 140, 20),
    "purple": (130, 40, 170),
    "pink": (250, 150, 200),
    "brown": (130, 75, 35),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
    "gray": (130, 130, 130),
    "teal": (0, 140, 140),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@dataclass(frozen=True, slots=True)
class Question:
    """Ask one thing about a picture.

    Attributes:
        kind: What it tests; scores are reported by kind.
        text: The question as a user would type it.
        answer: The short lower-case answer.
    """

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Hold a picture and what can be asked about it.

    Attributes:
        image: RGB picture of any size.
        questions: Questions in random order.
        patch_words: For each of the 36 patches, row by row, the words that describe it; empty if unknown.
    """

    image: Image.Image
    questions: list[Question]
    patch_words: list[tuple[str, ...]] = field(default_factory=list)


def jitter(rng: random.Random, color: str, amount: int = 18) -> tuple[int, int, int]:
    """Return a slightly varied RGB value of a named color."""
    red, green, blue = (min(255, max(0, part + rng.randint(-amount, amount))) for part in COLORS[color])
    return red, green, blue


def label_patches(
    mask: Image.Image, words: Sequence[tuple[str, ...]], share: float = 0.2
) -> list[tuple[str, ...]]:
    """Say for every patch what it shows.

    Args:
        mask: Mode "L"; value i means object i, 0 the background.
        words: Words of the background, then of each object.
        share: Part of a patch that an object must cover to be named.
    """
    values = np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.NEAREST))
    step = SIDE // GRID
    labels = []
    for row in range(GRID):
        for column in range(GRID):
            patch = values[row * step : (row + 1) * step, column * step : (column + 1) * step]
            counts = np.bincount(patch.ravel(), minlength=len(words))
            best = int(counts[1:].argmax()) + 1 if len(words) > 1 else 0
            covered = best > 0 and counts[best] >= share * patch.size
            labels.append(words[best] if covered else words[0])
    return labels


def vary_phrase(rng: random.Random, text: str) -> str:
    """Vary a question's surface: an instruction in front or behind, lower case, no question mark."""
    roll = rng.random()
    if roll < 0.12:
        text += rng.choice(
            (" Answer in one word.", " Answer briefly.", " Reply with a short answer.", " Be brief.")
        )
    elif roll < 0.16:
        text = rng.choice(("Look at the picture. ", "Please answer: ", "Question: ")) + text
    elif roll < 0.22:
        text = text.rstrip("?.")
    if rng.random() < 0.1:
        text = text.lower()
    return text


@cache
def font_paths() -> tuple[Path, ...]:
    """Return the scalable fonts of the machine, those that come with matplotlib included."""
    import matplotlib as mpl

    folders = (Path("/usr/share/fonts/truetype"), Path(mpl.get_data_path()) / "fonts" / "ttf")
    found = {path.name: path for folder in folders for path in sorted(folder.rglob("*.ttf"))}
    skip = ("math", "symbol", "emoji", "stix", "cmsy", "cmex", "cmmi", "noto", "awesome", "lastresort")
    return tuple(
        path for name, path in sorted(found.items()) if not any(word in name.lower() for word in skip)
    )


@cache
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """Return a font at a size in pixels."""
    return ImageFont.truetype(str(path), size)
