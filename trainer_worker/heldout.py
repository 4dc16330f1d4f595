"""Keep a part of every task's pictures for measuring only.

The split is by picture (by question for examples without one): a picture is held out if the hash of its
pixels lies under a fixed bar, whatever else is in the batch, so that a picture is on one side in all batches,
tasks and jobs. Only batches too small for that are bent (see ``HeldOut.split``), and data sets that name a
test part of their own: that part is held out and nothing else of them. Each task has a folder with
its held-out examples as data sets, one per state of the split, and ``split.json``, which remembers hashes
(never data) of what was held out and trained on: a picture that was once on one side stays there.

A version records the data set that it was measured on. The next job starts from that one, not from the
newest: what a rejected job held out does not blur the measure of the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter_store.datasets import Dataset, DatasetStore, Example
from adapter_store.datasets.held_out import SPLIT_FILE
from adapter_store.datasets.luck import HELD_OUT_RATIO, MAX_CHANCE, commonest_share, least_held_out
from adapter_store.datasets.records import distinct_images, picture_key
from adapter_store.durable import make_folder, write_durably
from adapter_store.names import check_task_name

EXAMPLES_PER_PICTURE = 8


@dataclass(frozen=True, slots=True)
class Split:
    """What a job may train on, and what it is measured on (``dataset_id`` None: nothing is held out)."""

    train: tuple[Example, ...]
    held_out_pictures: int
    dataset_id: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """Contents of ``split.json``: which data set opened the task, the newest held-out data set, hashes."""

    opened_by: str | None
    dataset_id: str | None
    held_out: frozenset[str]
    trained: frozenset[str]


class HeldOut:
    """Split batches and keep the held-out part of one lineage's tasks under ``folder/<task>/``."""

    def __init__(
        self, folder: Path, *, ratio: float = HELD_OUT_RATIO, cap: int = 200, max_chance: float = MAX_CHANCE
    ) -> None:
        self._folder = folder
        self._ratio = ratio
        self._cap = cap
        self._max_chance = max_chance

    def split(
        self, task: str, dataset: Dataset, earlier: str | None = None, *, learn_all: bool = False
    ) -> Split:
        """Divide a batch of ``task``; store the held-out part durably before returning.

        About ``ratio`` of the pictures is held out; of all that are, the ``cap`` with the smallest hashes
        are measured. Two exceptions for small batches: a task that has nothing to measure on holds out at
        least one of two or more new pictures, and up to a third of them until luck can be told (see
        ``least_held_out``); and of new pictures at least one is left to learn from. Repeating a call changes
        nothing and returns the same.

        Where examples say that they are of the test part, their pictures take the place of that choice.
        They are never learned from; they are measured on unless the task learned from them before. What
        was held out earlier stays so, whatever part it is given now.

        Args:
            task: the task's name.
            dataset: the batch.
            earlier: the data set that the parent version was measured on; None for a new task.
            learn_all: hold nothing of this batch out, not even what was held out before.
        """
        keys = [picture_key(example) for example in dataset.examples]
        record = self.record(task)
        if earlier is None or not self._data(task).exists(earlier):
            earlier = None
        tested = {key for example, key in zip(dataset.examples, keys, strict=True) if example.split == "test"}
        if learn_all:
            held, tested = set[str](), set[str]()
        elif tested:
            held = (set(keys) & record.held_out) | (tested - record.trained)
        else:
            held = self._choose(record, set(keys), None if earlier is not None else dataset.examples)
        unseen = held | tested
        train = tuple(
            example for example, key in zip(dataset.examples, keys, strict=True) if key not in unseen
        )
        dataset_id, pictures = self._store(task, dataset, keys, held, earlier)
        opened_by = dataset.ref.id if earlier is None else record.opened_by
        known_held = record.held_out | held
        known_trained = record.trained | (set(keys) - unseen - known_held)
        self._write(task, Record(opened_by, dataset_id, known_held, known_trained))
        return Split(train, pictures, dataset_id)

    def dataset(self, task: str, dataset_id: str | None = None) -> Dataset | None:
        """Open held-out examples of a task: the named ones if they exist, else the newest; None if none."""
        if dataset_id is None or not self._data(task).exists(dataset_id):
            dataset_id = self.record(task).dataset_id
        if dataset_id is None or not self._data(task).exists(dataset_id):
            return None
        return self._data(task).open(dataset_id)

    def names_in_use(self, *, besides: str) -> frozenset[str]:
        """Return the tasks that other data sets than ``besides`` have opened, promoted or not."""
        folders = [path.parent.name for path in self._folder.glob(f"*/{SPLIT_FILE}")]
        return frozenset(name for name in folders if self.record(name).opened_by != besides)

    def record(self, task: str) -> Record:
        """Read what is known about the split of a task."""
        path = self._folder / check_task_name(task) / SPLIT_FILE
        if not path.exists():
            return Record(None, None, frozenset(), frozenset())
        data = json.loads(path.read_text())
        held_out, trained = frozenset(data["held_out"]), frozenset(data["trained"])
        return Record(data.get("opened_by"), data["dataset_id"], held_out, trained)

    def _choose(self, record: Record, keys: set[str], opening: Sequence[Example] | None) -> set[str]:
        """Return the held-out ones of a batch's keys; no task is in the hash, so tasks agree on pictures.

        ``opening`` are the batch's examples if the task has nothing to measure on yet, else None.
        """
        fresh = sorted(keys - record.held_out - record.trained)
        under_bar = {key for key in fresh if int(key[:16], 16) < self._ratio * 2**64}
        held = (keys & record.held_out) | under_bar
        if opening is not None and self._ratio > 0 and len(fresh) >= 2:
            answers_each = sum(len(example.turns) for example in opening) / len(keys)
            least = least_held_out(len(fresh), answers_each, commonest_share(opening), self._max_chance)
            held |= set([key for key in fresh if key not in held][: max(0, least - len(held))])
        if fresh and held == keys:
            held -= {fresh[-1]}
        return held

    def _store(
        self, task: str, dataset: Dataset, keys: Sequence[str], held: set[str], earlier: str | None
    ) -> tuple[str | None, int]:
        """Store the earlier examples and the batch's held-out ones; return the data set and its pictures."""
        before = self._data(task).open(earlier) if earlier is not None else None
        old = {} if before is None else _by_picture(before.examples)
        fresh = (e for e, key in zip(dataset.examples, keys, strict=True) if key in held and key not in old)
        new = _by_picture(fresh)
        measured = sorted({*old, *new})[: self._cap]
        examples: list[Example] = []
        images: dict[str, bytes] = {}
        for key in measured:
            source = before if before is not None and key in old else dataset
            chosen = (old.get(key) or new[key])[:EXAMPLES_PER_PICTURE]
            examples += [
                Example(f"{key[:16]}-{number}", example.image, example.turns)
                for number, example in enumerate(chosen, start=1)
            ]
            images |= {name: source.image_bytes(name) for name in distinct_images(chosen)}
        if not examples:
            return None, 0
        return self._data(task).put_examples(examples, images).id, len(measured)

    def _data(self, task: str) -> DatasetStore:
        return DatasetStore(self._folder / check_task_name(task))

    def _write(self, task: str, record: Record) -> None:
        folder = self._folder / check_task_name(task)
        make_folder(folder)
        content = {
            "opened_by": record.opened_by,
            "dataset_id": record.dataset_id,
            "held_out": sorted(record.held_out),
            "trained": sorted(record.trained),
        }
        write_durably(folder / SPLIT_FILE, json.dumps(content).encode())


def _by_picture(examples: Iterable[Example]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(picture_key(example), []).append(example)
    return found
