"""Streams of tasks in the three shapes of COAST, from real packaged pictures; or a user's own data sets.

* ``domain``: one question, "What is shown?", of another world each time. Text alone cannot tell them apart.
* ``capability``: the same pictures, another skill each time.
* ``dataset``: another world each time, with questions and a style of answers of its own.
* ``revisit``: one task that comes back shifted, in batches of 32: digits of one world, then of another.
* ``few-16``, ``few-64``, ``few-256``: three worlds are known, then digits are asked for in words, that many
  of them.

Test pictures come from groups that no training picture comes from: an icon's design, an arrow's design
(outlines count as designs of their own), else the single picture. Of flags other crops, turns and light are
tested.
"""

from __future__ import annotations

import io
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from adapter_store.datasets import Dataset, DatasetStore, Example, Turn
from adapter_store.errors import InputError
from adapter_store.names import check_task_name
from benchmarks.forgetting.placed import placed_icons
from benchmarks.forgetting.worlds import Item, load_world

ONE_QUESTION: Final = "What is shown?"
DOMAINS: Final = ("digits", "animals", "flags", "icons", "patterns")
SKILLS: Final = {
    "corner": "In which corner is it?",
    "ground": "What is the ground like?",
    "tone": "Is it lighter or darker than the ground?",
    "style": "Is it filled or only an outline?",
    "size": "Is it small or large?",
}
NUMBER_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True)
class Manner:
    """How a data set asks, and how it puts its answers."""

    questions: tuple[str, ...]
    phrase: Callable[[str], str]


DATASETS: Final = {
    "digits": Manner(("Which digit is written here?", "Read the handwritten digit."), str),
    "animals": Manner(
        ("Which animal is this? Answer with a sentence.", "Name the animal in a sentence."),
        lambda answer: f"It is {'an' if answer[0] in 'aeiou' else 'a'} {answer}.",
    ),
    "flags": Manner(("Which country does this flag belong to?", "Whose flag is it?"), str),
    "icons": Manner(
        ("What does the icon stand for?", "What is the meaning of this icon?"),
        lambda answer: f"a {answer}",
    ),
    "mnist": Manner(
        ("Write the number as a word.", "Which number is it, in letters?"),
        lambda answer: NUMBER_WORDS[int(answer)],
    ),
    "arrows": Manner(("Which way does the arrow point?", "Where does the arrow lead?"), str),
}
FEW: Final = {f"few-{count}": count for count in (16, 64, 256)}
SMALL_BATCHES: Final = ("revisit", *FEW)
"""Streams with batches so small that the service plans its own number of passes over them."""
STREAMS: Final = ("domain", "capability", "dataset", "revisit", *FEW)
BATCH: Final = 32
BATCHES: Final = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one picture, with its right answer."""

    picture: Image.Image
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class StreamTask:
    """One stage of a stream: what is learned, what that is scored on, and which task it is taught as.

    Stages of one ``name`` share their test; ``teaches`` differs from it where a known task comes back.
    """

    name: str
    train: Dataset
    test: Dataset
    teaches: str


def build_stream(name: str, store: DatasetStore, *, train: int, test: int, seed: int) -> list[StreamTask]:
    """Return a stream's stages in order, stored as data sets like any upload.

    Args:
        name: one of ``STREAMS``.
        store: where the data sets are kept.
        train: examples of each task.
        test: scored questions of each task.
        seed: chooses pictures, split and questions.

    Raises:
        InputError: there is no such stream.
    """
    if name == "revisit":
        return _revisit(store, train, test, seed)
    if name in FEW:
        tasks = _few(FEW[name], train, test, seed)
    elif name == "capability":
        tasks = _capability(train, test, seed)
    elif name == "domain":
        tasks = {
            world: _of_world(world, Manner((ONE_QUESTION,), str), train, test, seed) for world in DOMAINS
        }
    elif name == "dataset":
        tasks = {world: _of_world(world, manner, train, test, seed) for world, manner in DATASETS.items()}
    else:
        raise InputError(
            f"there is no stream {name!r}: use {', '.join(STREAMS)}, or name a folder", param="stream"
        )
    return [
        StreamTask(task, keep(store, learned), keep(store, scored), teaches=task)
        for task, (learned, scored) in tasks.items()
    ]


def read_stream(folder: Path, store: DatasetStore) -> list[StreamTask]:
    """Read a user's stream: one folder for each task, in the order of their names.

    Each holds ``train`` and ``test`` in any accepted format: ``train.zip`` with its pictures inside, or
    ``train.jsonl`` with pictures as data URLs.

    Raises:
        InputError: the folder holds no tasks, or one of them lacks a part.
        DatasetError: a part has faults.
    """
    tasks = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"):
        parts = {part: sorted(place.glob(f"{part}.*")) for part in ("train", "test")}
        lacking = [part for part, found in parts.items() if len(found) != 1]
        if lacking:
            raise InputError(
                f"{place} needs exactly one file called {' and one '.join(f'{p}.*' for p in lacking)}"
            )
        train, test = (store.open(store.put(files[0], filename=files[0].name).id) for files in parts.values())
        name = check_task_name(place.name.lstrip("0123456789-_") or place.name)
        if name in {task.name for task in tasks}:
            raise InputError(f"{place} is the second folder of a task {name!r}: rename one")
        tasks.append(StreamTask(name, train, test, teaches=name))
    if len(tasks) < 2:
        raise InputError(f"{folder} holds {len(tasks)} folders of tasks; a stream has at least two")
    return tasks


def keep(store: DatasetStore, asked: Sequence[Asked]) -> Dataset:
    """Store questions as a data set."""
    examples, images = [], {}
    for number, one in enumerate(asked):
        buffer = io.BytesIO()
        one.picture.save(buffer, format="PNG")
        images[f"{number}.png"] = buffer.getvalue()
        examples.append(Example(str(number), f"{number}.png", (Turn(one.question, one.answer),)))
    return store.open(store.put_examples(examples, images).id)


def divide(items: Sequence[Item], train: int, test: int, rng: random.Random) -> tuple[list[Item], list[Item]]:
    """Choose training and test pictures that share no group, each balanced over the answers.

    Raises:
        InputError: an answer has too few pictures.
    """
    answers = sorted({item.answer for item in items})
    scored = _held_groups(items, share=test / (train + test), least=-(-test // len(answers)), rng=rng)
    parts = []
    for wanted, inside in ((train, False), (test, True)):
        by_answer: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            if (item.group in scored) == inside:
                by_answer[item.answer].append(item)
        chosen = []
        for place, answer in enumerate(answers):
            count = wanted // len(answers) + (place < wanted % len(answers))
            if len(by_answer[answer]) < count:
                raise InputError(
                    f"{answer!r} has {len(by_answer[answer])} pictures of the {count} that are wanted"
                )
            chosen += rng.sample(by_answer[answer], count)
        rng.shuffle(chosen)
        parts.append(chosen)
    return parts[0], parts[1]


def _held_groups(items: Sequence[Item], *, share: float, least: int, rng: random.Random) -> set[str]:
    """Choose groups to test on: of every answer a share of its groups, and at least so many pictures."""
    answers_of: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        answers_of[item.group][item.answer] += 1
    groups = sorted(answers_of)
    rng.shuffle(groups)
    lacking = Counter(answer for group in groups for answer in answers_of[group])
    lacking = Counter({answer: round(share * count) for answer, count in lacking.items()})
    pictures: Counter[str] = Counter()
    held = set()
    for group in groups:
        if any(lacking[answer] > 0 or pictures[answer] < least for answer in answers_of[group]):
            held.add(group)
            pictures.update(answers_of[group])
            lacking.subtract(set(answers_of[group]))
    return held


def _of_world(
    world: str, manner: Manner, train: int, test: int, seed: int
) -> tuple[list[Asked], list[Asked]]:
    rng = random.Random(f"{seed} {world}")
    parts = divide(load_world(world), train, test, rng)
    return _asked(parts[0], manner, rng), _asked(parts[1], manner, rng)


def _asked(items: Sequence[Item], manner: Manner, rng: random.Random) -> list[Asked]:
    return [Asked(item.picture, rng.choice(manner.questions), manner.phrase(item.answer)) for item in items]


def _revisit(store: DatasetStore, train: int, test: int, seed: int) -> list[StreamTask]:
    """Teach digits of one world, then small batches of another under the same name and question."""
    manner = Manner((DATASETS["digits"].questions[0],), str)
    learned, scored = _of_world("digits", manner, train, test, seed)
    stages = [StreamTask("old", keep(store, learned), keep(store, scored), teaches="digits")]
    learned, scored = _of_world("mnist", manner, BATCH * BATCHES, test, seed)
    asked = keep(store, scored)
    for first in range(0, len(learned), BATCH):
        batch = keep(store, learned[first : first + BATCH])
        stages.append(StreamTask("new", batch, asked, teaches="digits"))
    return stages


def _few(count: int, train: int, test: int, seed: int) -> dict[str, tuple[list[Asked], list[Asked]]]:
    """Teach three worlds in full, then ask one of them for other answers: ``count`` new digits, in words."""
    tasks = {world: _of_world(world, DATASETS[world], train, test, seed) for world in ("animals", "flags")}
    rng = random.Random(f"{seed} few")
    learned, scored = divide(load_world("digits"), train + count, 2 * test, rng)
    digits, words = (
        Manner(DATASETS[name].questions[:1], DATASETS[name].phrase) for name in ("digits", "mnist")
    )
    return {
        **tasks,
        "digits": (_asked(learned[:train], digits, rng), _asked(scored[:test], digits, rng)),
        "words": (_asked(learned[train:], words, rng), _asked(scored[test:], words, rng)),
    }


def _capability(train: int, test: int, seed: int) -> dict[str, tuple[list[Asked], list[Asked]]]:
    """Ask every skill about the same pictures; designs of the test pictures are new."""
    placed = placed_icons(3 * (train + test), seed)
    designs = sorted({one.group for one in placed})
    random.Random(f"{seed} designs").shuffle(designs)
    held = set(designs[: len(designs) // 4])
    learned = [one for one in placed if one.group not in held][:train]
    scored = [one for one in placed if one.group in held][:test]
    if len(learned) < train or len(scored) < test:
        raise InputError(f"only {len(learned)} and {len(scored)} pictures of placed icons came about")
    return {
        skill: (
            [Asked(one.picture, question, getattr(one, skill)) for one in learned],
            [Asked(one.picture, question, getattr(one, skill)) for one in scored],
        )
        for skill, question in SKILLS.items()
    }
