"""Read easy-VQA's official splits from its wheel."""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

import numpy as np
from PIL import Image

from trainer_worker.pretrain.picture import COLORS, Picture, Question, label_patches, vary_phrase
from trainer_worker.pretrain.scene_questions import ask_about
from trainer_worker.pretrain.scenes import Scene, Thing

_SHAPES = ("circle", "rectangle", "triangle")


class EasyVqa:
    """Give random access to the pictures of one official split.

    Args:
        wheel: The verified easy-VQA wheel.
        split: "train" or "test".
    """

    def __init__(self, wheel: Path, split: Literal["train", "test"]) -> None:
        self._images: list[bytes] = []
        self._asked: list[list[tuple[str, str]]] = []
        by_image: dict[int, list[tuple[str, str]]] = defaultdict(list)
        with ZipFile(wheel) as archive:
            for text, answer, image in json.loads(archive.read(f"easy_vqa/data/{split}/questions.json")):
                by_image[image].append((text, answer))
            for image, asked in sorted(by_image.items()):
                self._images.append(archive.read(f"easy_vqa/data/{split}/images/{image}.png"))
                self._asked.append(asked)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._images)

    def picture(self, index: int, rng: random.Random | None = None) -> Picture:
        """Return a picture with its official questions; with `rng`, shuffled and some rephrased."""
        image = Image.open(io.BytesIO(self._images[index])).convert("RGB")
        asked = self._asked[index]
        shape = next((answer for _, answer in asked if answer in _SHAPES), None)
        color = next((answer for _, answer in asked if answer in COLORS), None)
        questions = [Question(f"easy-vqa {_kind(answer)}", text, answer) for text, answer in asked]
        if rng is not None:
            questions = [q if rng.random() < 0.7 else _rephrase(q, rng) for q in questions]
            if shape and color:
                questions += _more_questions(shape, color, rng)
            rng.shuffle(questions)
        words: list[tuple[str, ...]] = []
        if shape and color:
            pixels = np.asarray(image).astype(np.int32)
            away = np.abs(pixels - pixels[0, 0]).sum(-1) > 60
            mask = Image.fromarray(away.astype(np.uint8), mode=None)
            words = label_patches(mask, [(" white",), (" " + color, " " + shape)])
        return Picture(image, questions, words)


def _more_questions(shape: str, color: str, rng: random.Random) -> list[Question]:
    """Ask more about a picture whose only shape is known, in the phrasings of the scenes."""
    scene = Scene("white", (Thing(shape, color, 0.5, 0.5, 0.3, big=True),))
    return ask_about(scene, rng, 12)


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in _SHAPES else "color"


def _rephrase(question: Question, rng: random.Random) -> Question:
    text = question.text[0].upper() + question.text[1:]
    return Question(question.kind, vary_phrase(rng, text), question.answer)
