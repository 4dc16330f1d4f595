"""Draw scenes of colored shapes and ask about them, fully determined by a seed.

Held-out pictures come from other random streams than training pictures (the stream's name is part of the
seed), so no training run can see them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from trainer_worker.pretrain.picture import COLORS, Picture, jitter, label_patches
from trainer_worker.pretrain.scene_questions import ask_about

# Squares are left out: easy-VQA calls them rectangles.
SHAPES = ("circle", "triangle", "rectangle", "star", "diamond", "cross", "ring", "hexagon", "heart")


@dataclass(frozen=True, slots=True)
class Thing:
    """Place one shape in a scene; lengths are shares of the picture's side.

    Attributes:
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        x: Center from the left, 0-1.
        y: Center from the top, 0-1.
        radius: Half of its extent.
        big: Whether it counts as big.
    """

    shape: str
    color: str
    x: float
    y: float
    radius: float
    big: bool

    @property
    def name(self) -> str:
        """Return color and shape in words."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold the contents of a scene.

    Attributes:
        background: Color name of the background.
        things: The shapes, none overlapping.
    """

    background: str
    things: tuple[Thing, ...]


def make_scene(rng: random.Random) -> Scene:
    """Draw the contents of a scene at random."""
    background = rng.choice(("white", "white", "white", "black", "gray", rng.choice(list(COLORS))))
    colors = [color for color in COLORS if color != background and {color, background} != {"gray", "white"}]
    count = rng.choices((1, 2, 3, 4, 5), (87, 9, 2, 1, 1))[0]
    if count > 1 and rng.random() < 0.45:
        colors = rng.sample(colors, 3)
    shapes = rng.sample(SHAPES, rng.randint(1, 3)) if count > 1 and rng.random() < 0.5 else list(SHAPES)
    if rng.random() < 0.4:
        shapes = [shape for shape in shapes if shape in SHAPES[:3]] or list(SHAPES[:3])
    things: list[Thing] = []
    for _ in range(60):
        if len(things) == count:
            break
        big = rng.random() < 0.5
        scale = (0.30, 0.36, 0.26, 0.22, 0.19, 0.18)[count]
        radius = rng.uniform(0.85, 1.0) * scale if big else rng.uniform(0.5, 0.62) * scale
        radius = max(radius, 0.1)
        x, y = rng.uniform(radius + 0.02, 0.98 - radius), rng.uniform(radius + 0.02, 0.98 - radius)
        if all(math.hypot(x - t.x, y - t.y) > 1.15 * (radius + t.radius) for t in things):
            things.append(Thing(rng.choice(shapes), rng.choice(colors), x, y, radius, big))
    return Scene(background, tuple(things))


def draw_scene(scene: Scene, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """Draw a scene; returns the picture and a mask of object numbers."""
    side = rng.choice((84, 96, 112, 128, 160, 224))
    scale = 2
    canvas = Image.new("RGB", (side * scale, side * scale), jitter(rng, scene.background))
    mask = Image.new("L", canvas.size, 0)
    if rng.random() < 0.25:
        _gradient(canvas, rng)
    for number, thing in enumerate(scene.things, 1):
        turn = rng.uniform(-0.35, 0.35) if rng.random() < 0.5 else 0.0
        outline = (60, 60, 60) if rng.random() < 0.15 else None
        state = rng.random()
        for image, fill, edge in ((canvas, jitter(rng, thing.color), outline), (mask, number, None)):
            _draw_thing(ImageDraw.Draw(image), thing, side * scale, turn, fill, edge, state)
    canvas = canvas.resize((side, side), Image.Resampling.BOX)
    if rng.random() < 0.12:
        canvas = canvas.filter(ImageFilter.GaussianBlur(side / 160))
    return canvas, mask


def _gradient(canvas: Image.Image, rng: random.Random) -> None:
    shade = Image.linear_gradient("L").resize(canvas.size)
    if rng.random() < 0.5:
        shade = shade.rotate(90)
    tint = Image.new("RGB", canvas.size, rng.choice(((255, 255, 255), (0, 0, 0))))
    canvas.paste(tint, mask=shade.point([value // 6 for value in range(256)]))


def _draw_thing(
    pen: ImageDraw.ImageDraw,
    thing: Thing,
    side: int,
    turn: float,
    fill: tuple[int, int, int] | int,
    edge: tuple[int, int, int] | None,
    state: float,
) -> None:
    x, y, radius = thing.x * side, thing.y * side, thing.radius * side
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "circle":
        pen.ellipse(box, fill=fill, outline=edge, width=3)
    elif thing.shape == "ring":
        pen.ellipse(box, outline=fill, width=max(4, int(radius * 0.38)))
    else:
        points = [(x + radius * px, y + radius * py) for px, py in _outline(thing.shape, turn, state)]
        pen.polygon(points, fill=fill, outline=edge, width=3)


def _outline(shape: str, turn: float, state: float) -> list[tuple[float, float]]:
    """Return a shape's corners in a unit circle, turned by an angle in radians."""
    if shape == "rectangle":
        long, short = 0.95, 0.42 + 0.15 * state
        points = [(-long, -short), (long, -short), (long, short), (-long, short)]
        turn = turn * 0.4 + (math.pi / 2 if state > 0.5 else 0.0)
    elif shape == "diamond":
        points = [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]
        turn = 0.0
    elif shape == "triangle":
        points = _regular(3, 1.0)
    elif shape == "hexagon":
        points = _regular(6, 1.0)
    elif shape == "star":
        points = [
            (r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5))
            for k, r in enumerate((1.0, 0.42) * 5)
        ]
    elif shape == "cross":
        a, b = 0.32, 0.95
        points = [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
        ]
        points.append((-a, -a))
        turn *= 0.4
    else:
        angles = [2 * math.pi * k / 40 for k in range(40)]
        points = [(math.sin(t) ** 3, -_heart_height(t) / 16) for t in angles]
        turn *= 0.5
    cosine, sine = math.cos(turn), math.sin(turn)
    return [(px * cosine - py * sine, px * sine + py * cosine) for px, py in points]


def _regular(corners: int, radius: float) -> list[tuple[float, float]]:
    angles = [2 * math.pi * k / corners for k in range(corners)]
    return [(radius * math.sin(t), -radius * math.cos(t)) for t in angles]


def _heart_height(t: float) -> float:
    return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)


def scene_picture(rng: random.Random, wanted: int = 14) -> Picture:
    """Draw a scene and about `wanted` questions on it."""
    scene = make_scene(rng)
    image, mask = draw_scene(scene, rng)
    words = [(" " + scene.background,), *((" " + t.color, " " + t.shape) for t in scene.things)]
    return Picture(image, ask_about(scene, rng, wanted), label_patches(mask, words))


def generic_probe(n: int, seed: int) -> list[tuple[Image.Image, str, str]]:
    """Return held-out generic questions, one per picture.

    The same `(n, seed)` gives the same pictures and questions everywhere; none is ever trained on.

    Args:
        n: How many.
        seed: Any integer.

    Returns:
        `(picture, question, answer)` triples over shapes, colors, existence and counts.
    """
    probes: list[tuple[Image.Image, str, str]] = []
    index = 0
    while len(probes) < n:
        rng = random.Random(f"probe-{seed}-{index}")
        index += 1
        picture = scene_picture(rng)
        kinds = ("color", "shape", "yes/no", "count")
        wanted = kinds[len(probes) % len(kinds)]
        found = [question for question in picture.questions if question.kind == wanted]
        if found:
            probes.append((picture.image, found[0].text, found[0].answer))
    return probes
