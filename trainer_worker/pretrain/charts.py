"""Draw simple bar charts without any digits and ask about them."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from trainer_worker.pretrain.picture import (
    COLORS,
    NUMBERS,
    Picture,
    Question,
    jitter,
    label_patches,
    vary_phrase,
)

_BAR_COLORS = tuple(color for color in COLORS if color not in ("white", "gray"))


def chart_picture(rng: random.Random) -> Picture:
    """Draw a bar chart of differently colored bars and ask about heights, order and colors."""
    count = rng.randint(2, 5)
    colors = rng.sample(_BAR_COLORS, count)
    heights = [step / 12 for step in rng.sample(range(2, 13), count)]
    side = rng.choice((112, 128, 168, 224))
    image = Image.new("RGB", (side, side), jitter(rng, "white", 5))
    mask = Image.new("L", image.size, 0)
    pen, marker = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    left, floor, span = side * 0.08, side * 0.92, side * 0.86
    if rng.random() < 0.4:
        for line in range(1, 5):
            y = floor - span * line / 4.5
            pen.line((left, y, side * 0.97, y), fill=(205, 205, 205))
    slot = span / count
    thick = slot * rng.uniform(0.6, 0.9)
    for number, (color, height) in enumerate(zip(colors, heights, strict=True)):
        x = left + slot * number + (slot - thick) / 2
        box = (x, floor - span * height * 0.95, x + thick, floor)
        pen.rectangle(box, fill=jitter(rng, color))
        marker.rectangle(box, fill=number + 1)
    pen.line((left, side * 0.05, left, floor), fill=(40, 40, 40), width=max(1, side // 90))
    pen.line((left, floor, side * 0.97, floor), fill=(40, 40, 40), width=max(1, side // 90))
    words = [(" white",), *((" " + color, " bar") for color in colors)]
    return Picture(image, _ask(rng, colors, heights), label_patches(mask, words))


def _ask(rng: random.Random, colors: list[str], heights: list[float]) -> list[Question]:
    tallest, shortest = colors[heights.index(max(heights))], colors[heights.index(min(heights))]
    asks = [
        ("chart", rng.choice(("Which bar is the tallest?", "What color is the tallest bar?")), tallest),
        (
            "chart",
            rng.choice(("What color is the highest bar?", "Which color has the largest value?")),
            tallest,
        ),
        ("chart", rng.choice(("Which bar is the shortest?", "What color is the shortest bar?")), shortest),
        (
            "chart",
            rng.choice(("What color is the lowest bar?", "Which color has the smallest value?")),
            shortest,
        ),
        (
            "count",
            rng.choice(("How many bars are there?", "How many bars does the chart have?")),
            NUMBERS[len(colors)],
        ),
        ("chart", rng.choice(("What color is the first bar?", "What color is the leftmost bar?")), colors[0]),
        (
            "chart",
            rng.choice(("What color is the last bar?", "What color is the rightmost bar?")),
            colors[-1],
        ),
        ("what", rng.choice(("What kind of chart is this?", "What type of chart is shown?")), "bar chart"),
    ]
    for _ in range(3):
        first, second = rng.sample(range(len(colors)), 2)
        word, truth = rng.choice((("taller", True), ("shorter", False)))
        answer = "yes" if (heights[first] > heights[second]) == truth else "no"
        asks.append(
            ("chart yes/no", f"Is the {colors[first]} bar {word} than the {colors[second]} bar?", answer)
        )
    for _ in range(2):
        present = rng.random() < 0.5
        color = rng.choice(colors) if present else rng.choice([c for c in _BAR_COLORS if c not in colors])
        claim = rng.choice(("Is there a {c} bar?", "Does the chart have a {c} bar?", "Do you see a {c} bar?"))
        asks.append(("yes/no", claim.format(c=color), "yes" if present else "no"))
    questions = {text: Question(kind, vary_phrase(rng, text), answer) for kind, text, answer in asks}
    result = list(questions.values())
    rng.shuffle(result)
    return result
