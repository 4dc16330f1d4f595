"""Regular patterns in two colors, as on cloth: a world of their own, and grounds for other pictures."""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

Color = tuple[int, int, int]

PATTERNS: Final = ("striped", "dotted", "checked", "wavy", "ringed", "barred")
_FINER: Final = 3
"""Patterns are computed at so many times the size, then shrunk: smooth edges at any angle."""


def paint(name: str, side: int, ink: Color, ground: Color, rng: np.random.Generator) -> Image.Image:
    """Return a square picture of one of ``PATTERNS``, at some scale, turned by some angle."""
    fine = _FINER * side
    rows, columns = np.mgrid[0:fine, 0:fine] - fine / 2
    angle, pitch = float(rng.uniform(0, np.pi)), float(rng.uniform(0.07, 0.14)) * fine
    phase = rng.uniform(0, 2 * np.pi, 2)
    u = (columns * np.cos(angle) + rows * np.sin(angle)) * np.pi / pitch + phase[0]
    v = (rows * np.cos(angle) - columns * np.sin(angle)) * np.pi / pitch + phase[1]
    inked = _inked(name, u, v)
    colors = np.where(inked[..., None], np.array(ink), np.array(ground)).astype(np.uint8)
    return Image.fromarray(colors).resize((side, side), Image.Resampling.LANCZOS)


def _inked(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return where the ink is; ``u`` and ``v`` run along the pattern, half a period is pi."""
    if name == "striped":
        return np.sin(u) > 0
    if name == "dotted":
        return np.sin(u) + np.sin(v) > 0.9
    if name == "checked":
        return (np.sin(u) > 0) != (np.sin(v) > 0)
    if name == "wavy":
        return np.sin(u + 1.6 * np.sin(v)) > 0
    if name == "ringed":
        return np.sin(np.hypot(u, v)) > 0
    if name == "barred":
        return (np.abs(np.sin(u)) < 0.25) | (np.abs(np.sin(v)) < 0.25)
    raise ValueError(f"there is no pattern {name!r}")
