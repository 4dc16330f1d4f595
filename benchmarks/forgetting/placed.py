"""Pictures about which five different things can be asked: icons in a corner of some ground."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from adapter_store.base.download import default_cache_dir
from benchmarks.forgetting.patterns import Color, paint
from benchmarks.forgetting.worlds import ICON_KINDS, SIDE, colors, icon_font, mask_of

CORNERS: Final = ("top left", "top right", "bottom left", "bottom right")
GROUNDS: Final = ("plain", "striped", "dotted", "checked")
SIZES: Final = {"small": 22, "large": 38}
_SHADE: Final = 36
"""How far the two colors of a ground differ in every channel; the icon differs by at least 30 from both."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An icon in a corner, and everything that can be asked about it."""

    picture: Image.Image
    corner: str
    ground: str
    tone: str
    style: str
    size: str
    group: str


def placed_icons(count: int, seed: int, cache: Path | None = None) -> list[Placed]:
    """Draw ``count`` pictures of one icon each: corner, size, style, tone and ground are drawn by lot.

    Only designs that exist filled and as an outline are used; all their pictures are of one group.
    """
    font, glyphs = icon_font(cache or default_cache_dir())
    rng = np.random.default_rng([11, seed])
    designs = [
        name
        for name in glyphs
        if f"{name}-outline" in glyphs and name.partition("-")[0] in ICON_KINDS and "off" not in name
    ]
    found = []
    for _ in range(count):
        design = designs[rng.integers(len(designs))]
        style = ("filled", "outline")[rng.integers(2)]
        glyph = glyphs[design if style == "filled" else f"{design}-outline"]
        corner, ground = CORNERS[rng.integers(len(CORNERS))], GROUNDS[rng.integers(len(GROUNDS))]
        size = tuple(SIZES)[rng.integers(len(SIZES))]
        ink, behind = colors(rng)
        picture = _ground(ground, behind, rng)
        _place(picture, mask_of(font, glyph, SIZES[size]), ink, corner, rng)
        tone = "lighter" if sum(ink) > sum(behind) else "darker"
        found.append(Placed(picture, corner, ground, tone, style, size, design))
    return found


def _ground(name: str, color: Color, rng: np.random.Generator) -> Image.Image:
    if name == "plain":
        return Image.new("RGB", (SIDE, SIDE), color)
    step = _SHADE if sum(color) < 3 * 128 else -_SHADE
    red, green, blue = (min(255, max(0, value + step)) for value in color)
    return paint(name, SIDE, (red, green, blue), color, rng)


def _place(
    picture: Image.Image, mask: Image.Image, ink: Color, corner: str, rng: np.random.Generator
) -> None:
    x = SIDE // 4 if corner.endswith("left") else 3 * SIDE // 4
    y = SIDE // 4 if corner.startswith("top") else 3 * SIDE // 4
    left, top = (
        int(center - side / 2 + rng.integers(-2, 3)) for center, side in zip((x, y), mask.size, strict=True)
    )
    picture.paste(ink, (left, top), mask)
