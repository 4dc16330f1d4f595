"""Ask about scenes in many phrasings."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer_worker.pretrain.picture import COLORS, NUMBERS, Question, vary_phrase

if TYPE_CHECKING:
    from trainer_worker.pretrain.scenes import Scene, Thing

_SHAPE_WORDS = ("circle", "triangle", "rectangle", "star", "diamond", "cross", "ring", "hexagon", "heart")
_KINDS = ("shape", "color", "yes/no", "count", "relation", "position", "size", "background", "describe")
_WEIGHTS = (20, 22, 36, 5, 4, 3, 2, 2, 6)


def ask_about(scene: Scene, rng: random.Random, wanted: int) -> list[Question]:
    """Return up to `wanted` different questions on a scene."""
    questions: dict[str, Question] = {}
    for _ in range(wanted * 3):
        if len(questions) == wanted:
            break
        kind = rng.choices(_KINDS, _WEIGHTS)[0]
        pair = _ASK[kind](scene, rng)
        if pair is not None:
            text = vary_phrase(rng, pair[0])
            questions[text.lower()] = Question(kind, text, pair[1])
    return list(questions.values())


def article(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _only(scene: Scene, attribute: str) -> list[Thing]:
    """Return the things whose shape or color no other thing has."""
    counts = Counter(getattr(thing, attribute) for thing in scene.things)
    return [thing for thing in scene.things if counts[getattr(thing, attribute)] == 1]


def _unique_names(scene: Scene) -> list[Thing]:
    return _only(scene, "name")


def _refer(scene: Scene, rng: random.Random, thing: Thing) -> str:
    """Name a thing so that only it is meant: by shape if that is enough, else by color and shape."""
    if thing in _only(scene, "shape") and rng.random() < 0.5:
        return "the " + thing.shape
    return "the " + thing.name


def _ask_shape(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    if len(scene.things) == 1:
        templates = (
            "What shape is this?",
            "What shape is in the image?",
            "What shape does the image contain?",
            "Which shape is shown?",
            "What is the shape in the picture?",
            "What kind of shape do you see?",
            "Name the shape.",
            "What geometric figure is this?",
            "What shape is present?",
        )
        if rng.random() < 0.8:
            return rng.choice(templates), scene.things[0].shape
    candidates = _only(scene, "color")
    if not candidates:
        return None
    thing = rng.choice(candidates)
    templates = (
        "What shape is the {c} object?",
        "What is the shape of the {c} thing?",
        "Which shape is {c}?",
        "What {c} shape is in the image?",
        "Name the {c} shape.",
        "What {c} shape do you see?",
        "What is the {c} shape?",
    )
    return rng.choice(templates).format(c=thing.color), thing.shape


def _ask_color(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    if len(scene.things) == 1 and rng.random() < 0.5:
        templates = (
            "What color is the shape?",
            "What color is it?",
            "What color is this?",
            "What is the color of the shape?",
            "Which color does the object have?",
            "What color is the object in the picture?",
            "Name the color of the shape.",
            "What color does the shape have?",
        )
        return rng.choice(templates), scene.things[0].color
    candidates = _only(scene, "shape")
    if not candidates:
        return None
    thing = rng.choice(candidates)
    templates = (
        "What color is the {s}?",
        "What is the color of the {s}?",
        "Which color is the {s}?",
        "Which color does the {s} have?",
        "Tell me the color of the {s}.",
        "What color does the {s} have?",
    )
    return rng.choice(templates).format(s=thing.shape), thing.color


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def _ask_yes_no(scene: Scene, rng: random.Random) -> tuple[str, str]:
    want = rng.random() < 0.5
    thing = rng.choice(scene.things)
    roll = rng.random()
    if roll < 0.4:
        noun, truth = _shape_claim(scene, rng, thing, want)
    elif roll < 0.65:
        noun, truth = _color_claim(scene, rng, thing, want)
    elif roll < 0.9 or len(scene.things) > 1:
        noun, truth = _name_claim(scene, rng, thing, want)
    else:
        color, right = (thing.color, True) if want else (_other(rng, COLORS, {thing.color}), False)
        text = rng.choice(
            ("Is the {s} {c}?", "Is the shape {c}?", "Is it {c}?", "Is the {s} in the image {c}?")
        )
        return text.format(s=thing.shape, c=color), _yes_no(right)
    if rng.random() < 0.3:
        templates = (
            "Is there no {n}?",
            "Does the image not contain {an}?",
            "Is no {n} in the image?",
            "Is there not {an} in the image?",
            "Is no {n} present?",
        )
        truth = not truth
    else:
        templates = (
            "Is there {an}?",
            "Is there {an} in the image?",
            "Does the image contain {an}?",
            "Is {an} present?",
            "Can you see {an}?",
            "Does the picture show {an}?",
            "Do you see {an} here?",
            "Is {an} in the picture?",
        )
    return rng.choice(templates).format(n=noun, an=article(noun)), _yes_no(truth)


def _other(
    rng: random.Random, words: tuple[str, ...] | dict[str, tuple[int, int, int]], taken: set[str]
) -> str:
    return rng.choice([word for word in words if word not in taken])


def _shape_claim(scene: Scene, rng: random.Random, thing: Thing, want: bool) -> tuple[str, bool]:
    present = {t.shape for t in scene.things}
    return (thing.shape, True) if want else (_other(rng, _SHAPE_WORDS, present), False)


def _color_claim(scene: Scene, rng: random.Random, thing: Thing, want: bool) -> tuple[str, bool]:
    present = {t.color for t in scene.things}
    color = thing.color if want else _other(rng, COLORS, present)
    return f"{color} {rng.choice(('shape', 'object', 'thing'))}", want


def _name_claim(scene: Scene, rng: random.Random, thing: Thing, want: bool) -> tuple[str, bool]:
    if want:
        return thing.name, True
    names = {t.name for t in scene.things}
    for _ in range(20):
        roll = rng.random()
        shape, color = thing.shape, thing.color
        if roll < 0.4:
            color = _other(rng, COLORS, {color})
        elif roll < 0.8:
            shape = _other(rng, _SHAPE_WORDS, {shape})
        else:
            shape, color = rng.choice(scene.things).shape, rng.choice(scene.things).color
        if f"{color} {shape}" not in names:
            return f"{color} {shape}", False
    return f"{_other(rng, COLORS, {t.color for t in scene.things})} {thing.shape}", False


def plural(noun: str) -> str:
    """Return the plural of a shape word."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _ask_count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    roll = rng.random()
    if roll < 0.4:
        what, count = rng.choice(("shapes", "objects", "things")), len(scene.things)
    elif roll < 0.7:
        shape = rng.choice(scene.things).shape if rng.random() < 0.85 else rng.choice(_SHAPE_WORDS)
        what, count = plural(shape), sum(t.shape == shape for t in scene.things)
    else:
        color = rng.choice(scene.things).color if rng.random() < 0.85 else rng.choice(list(COLORS))
        what, count = f"{color} shapes", sum(t.color == color for t in scene.things)
    templates = (
        "How many {w} are there?",
        "How many {w} are in the image?",
        "How many {w} do you see?",
        "Count the {w}.",
        "What is the number of {w}?",
        "How many {w} does the picture show?",
    )
    return rng.choice(templates).format(w=what), NUMBERS[count]


def _ask_relation(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    unique = _unique_names(scene)
    if len(unique) < 2:
        return None
    first, second = rng.sample(unique, 2)
    dx, dy = first.x - second.x, first.y - second.y
    if max(abs(dx), abs(dy)) < 0.18:
        return None
    horizontal = abs(dx) > abs(dy)
    word = ("left of" if dx < 0 else "right of") if horizontal else ("above" if dy < 0 else "below")
    a, b = _refer(scene, rng, first), _refer(scene, rng, second)
    if rng.random() < 0.55:
        flipped = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        claim, truth = (word, True) if rng.random() < 0.5 else (flipped[word], False)
        phrase = (
            claim.replace("left", "to the left").replace("right", "to the right")
            if rng.random() < 0.3
            else claim
        )
        return f"Is {a} {phrase} {b}?", _yes_no(truth)
    if len(scene.things) == 2:
        place = {"left of": "left of", "right of": "right of", "above": "above", "below": "below"}[word]
        return rng.choice(("What is {p} {b}?", "Which object is {p} {b}?")).format(p=place, b=b), first.name
    return f"Is {a} left of, right of, above or below {b}?", word.removesuffix(" of")


def _ask_position(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    candidates = [t for t in _unique_names(scene) if min(abs(t.x - 0.5), abs(t.y - 0.5)) > 0.1]
    if not candidates:
        return None
    thing = rng.choice(candidates)
    place = ("top" if thing.y < 0.5 else "bottom") + (" left" if thing.x < 0.5 else " right")
    templates = (
        "Where is {t}?",
        "In which corner is {t}?",
        "Where in the picture is {t}?",
        "Where do you see {t}?",
    )
    return rng.choice(templates).format(t=_refer(scene, rng, thing)), place


def _ask_size(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    unique = _unique_names(scene)
    if len(unique) < 2:
        return None
    first, second = rng.sample(unique, 2)
    if max(first.radius, second.radius) < 1.35 * min(first.radius, second.radius):
        return None
    a, b = _refer(scene, rng, first), _refer(scene, rng, second)
    bigger = first.radius > second.radius
    if rng.random() < 0.6:
        word, truth = ("bigger", bigger) if rng.random() < 0.5 else ("smaller", not bigger)
        return f"Is {a} {word} than {b}?", _yes_no(truth)
    if len(scene.things) != 2:
        return None
    word, thing = ("bigger", first if bigger else second)
    if rng.random() < 0.5:
        word, thing = ("smaller", second if bigger else first)
    return rng.choice(("Which object is {w}?", "Which shape is the {w} one?")).format(w=word), thing.name


def _ask_background(scene: Scene, rng: random.Random) -> tuple[str, str]:
    templates = (
        "What color is the background?",
        "What is the background color?",
        "Which color does the background have?",
        "What color is behind the shapes?",
    )
    return rng.choice(templates), scene.background


def _ask_describe(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    if len(scene.things) > 3:
        return None
    order = sorted(scene.things, key=lambda thing: thing.x)
    names = [article(thing.name) for thing in order]
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    templates = (
        "Describe the picture.",
        "Describe the image.",
        "What is shown in the picture?",
        "What do you see?",
        "What is in this image?",
    )
    return rng.choice(templates), text


_ASK: dict[str, Callable[[Scene, random.Random], tuple[str, str] | None]] = {
    "shape": _ask_shape,
    "color": _ask_color,
    "yes/no": _ask_yes_no,
    "count": _ask_count,
    "relation": _ask_relation,
    "position": _ask_position,
    "size": _ask_size,
    "background": _ask_background,
    "describe": _ask_describe,
}
