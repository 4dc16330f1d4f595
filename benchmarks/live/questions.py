"""What the serving programs ask: a pool of drawn pictures, and questions of mixed length."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw

QUESTIONS = (
    "Explain in detail what one could do with the thing in the picture.",
    "Write a long story about the picture.",
    "Tell me everything that comes to mind when you see this picture, and why.",
    "Is there a circle?",
    "What is shown in the picture? Answer with one word.",
    "Which color has the shape in the middle?",
)
"""The first three have long answers: without them there would be few gaps between tokens to look at."""
_COLORS = ("red", "green", "blue", "yellow", "black", "orange", "purple", "brown")
_SIDE = 84


@dataclass(frozen=True, slots=True)
class Asked:
    """Say what one request asks: a picture by its number, a text, and the most tokens of the answer."""

    picture: int
    text: str
    max_tokens: int

    def body(self, model: str) -> dict[str, Any]:
        """Return the streamed, greedy chat request that asks it."""
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(self.picture)}},
            {"type": "text", "text": self.text},
        ]
        return {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def picture_of(number: int) -> Image.Image:
    """Draw picture ``number``: one to three shapes on white, the same every time."""
    source = random.Random(f"picture-{number}")
    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(source.randint(1, 3)):
        size, left, top = source.randint(20, 44), source.randint(0, 40), source.randint(0, 40)
        shape = draw.ellipse if source.random() < 0.5 else draw.rectangle
        shape((left, top, left + size, top + size), fill=source.choice(_COLORS))
    image.putpixel((0, 0), (number % 256, number // 256 % 256, 255))  # no two pictures are equal
    return image


def png_of(number: int) -> bytes:
    """Return picture ``number`` as a PNG file."""
    stream = io.BytesIO()
    picture_of(number).save(stream, "PNG")
    return stream.getvalue()


@lru_cache(maxsize=4096)
def _data_url(number: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(png_of(number)).decode()}"


def mixed(
    count: int, pictures: int, max_tokens: int, seed: int, texts: Sequence[str] = QUESTIONS
) -> list[Asked]:
    """Return ``count`` questions over a pool of ``pictures``, the same for the same seed."""
    source = random.Random(f"questions-{seed}")
    return [Asked(source.randrange(pictures), source.choice(texts), max_tokens) for _ in range(count)]


def fresh(count: int, seed: int, max_tokens: int) -> list[Asked]:
    """Return up to 1,000 mixed questions about pictures that no other seed has."""
    asked = mixed(count, 1, max_tokens, seed)
    return [Asked(1000 * seed + place, one.text, one.max_tokens) for place, one in enumerate(asked)]
