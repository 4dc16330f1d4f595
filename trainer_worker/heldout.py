"""Keep a part of every task's pictures for measuring only.

The split is by picture (by question for examples without one), chosen by hash, so that it does not depend on
the order of the data and equal pictures always fall on the same side. Each task has a folder with the
held-out examples as a data set and ``split.json``, which also remembers hashes (never data) of what was
trained on: a picture that was once on one side stays there, in every later batch of the task.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_store.datasets import Dataset, DatasetStore, Example
from adapter_store.datasets.records import distinct_images
from adapter_store.names import check_task_name

EXAMPLES_PER_PICTURE = 8
SPLIT_FILE = "split.json"


@dataclass(frozen=True, slots=True)
class Split:
    """What a job may train on, and how many of its pictures are held out (in all batches of the task)."""

    train: tuple[Example, ...]
    held_out_pictures: int
    grown: bool


@dataclass(frozen=True, slots=True)
class Record:
    """Contents of ``split.json``: the data set's id (None while nothing is held out) and picture hashes."""

    dataset_id: str | None
    held_out: frozenset[str]
    trained: frozenset[str]


class HeldOut:
    """Split batches and keep the held-out part of one lineage's tasks under ``folder/<task>/``."""

    def __init__(self, folder: Path, *, ratio: float = 0.2, cap: int = 200) -> None:
        self._folder = folder
        self._ratio = ratio
        self._cap = cap

    def split(self, task: str, dataset: Dataset) -> Split:
        """Divide a batch of ``task``; store the held-out part durably before returning.

        About ``ratio`` of the batch's new pictures is held out, until ``cap`` pictures are. At least one of
        two or more pictures is, as long as the task has none. Repeating a call changes nothing.
        """
        keys = [picture_key(example) for example in dataset.examples]
        record = self.record(task)
        chosen = self._choose(record, set(keys))
        held = record.held_out | chosen
        train = tuple(example for example, key in zip(dataset.examples, keys, strict=True) if key not in held)
        dataset_id = self._store(task, dataset, keys, chosen) if chosen else record.dataset_id
        self._write(task, Record(dataset_id, held, record.trained | (set(keys) - held)))
        return Split(train, len(held), grown=bool(chosen) and bool(record.held_out))

    def dataset(self, task: str) -> Dataset | None:
        """Open the held-out examples of a task; None when it has none."""
        record = self.record(task)
        return None if record.dataset_id is None else self._data(task).open(record.dataset_id)

    def record(self, task: str) -> Record:
        """Read what is known about the split of a task."""
        path = self._folder / check_task_name(task) / SPLIT_FILE
        if not path.exists():
            return Record(None, frozenset(), frozenset())
        data = json.loads(path.read_text())
        return Record(data["dataset_id"], frozenset(data["held_out"]), frozenset(data["trained"]))

    def _choose(self, record: Record, keys: set[str]) -> set[str]:
        """Take the pictures with the smallest hashes; no task is in the hash, so tasks agree on pictures."""
        fresh = sorted(keys - record.held_out - record.trained)
        room = max(0, self._cap - len(record.held_out))
        wanted = round(self._ratio * len(fresh))
        if not record.held_out and self._ratio > 0 and len(fresh) >= 2:
            wanted = max(1, wanted)
        return set(fresh[: min(room, wanted)])

    def _store(self, task: str, dataset: Dataset, keys: Sequence[str], chosen: set[str]) -> str:
        examples: list[Example] = []
        images: dict[str, bytes] = {}
        earlier = self.dataset(task)
        if earlier is not None:
            examples = list(earlier.examples)
            images = {name: earlier.image_bytes(name) for name in distinct_images(examples)}
        count = dict.fromkeys(chosen, 0)
        for example, key in zip(dataset.examples, keys, strict=True):
            if key not in chosen or count[key] >= EXAMPLES_PER_PICTURE:
                continue
            count[key] += 1
            examples.append(Example(f"{key[:16]}-{count[key]}", example.image, example.turns))
            if example.image is not None and example.image not in images:
                images[example.image] = dataset.image_bytes(example.image)
        return self._data(task).put_examples(examples, images).id

    def _data(self, task: str) -> DatasetStore:
        return DatasetStore(self._folder / check_task_name(task))

    def _write(self, task: str, record: Record) -> None:
        folder = self._folder / check_task_name(task)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "dataset_id": record.dataset_id,
            "held_out": sorted(record.held_out),
            "trained": sorted(record.trained),
        }
        partial = folder / f"{SPLIT_FILE}.{os.getpid()}"
        with partial.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / SPLIT_FILE)


def picture_key(example: Example) -> str:
    """Return the hash that decides an example's side: its picture's pixels, or its first question.

    Stored pictures are named by the sha256 of their pixels.
    """
    if example.image is not None:
        return Path(example.image).stem
    return hashlib.sha256(b"text:" + example.turns[0].question.encode()).hexdigest()
