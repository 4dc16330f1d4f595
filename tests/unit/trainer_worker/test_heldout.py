"""What is measured on is never trained on."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from adapter_store.datasets import Dataset, DatasetStore, Example, Turn
from trainer_worker.heldout import HeldOut, picture_key


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(buffer, format="PNG")
    return buffer.getvalue()


def dataset(store: DatasetStore, numbers: range, questions: int = 1) -> Dataset:
    examples = [
        Example(f"{n}-{q}", f"{n}.png", (Turn(f"question {q}?", str(n)),))
        for n in numbers
        for q in range(questions)
    ]
    return store.open(store.put_examples(examples, {f"{n}.png": png(n) for n in numbers}).id)


def keys(examples) -> set[str]:
    return {picture_key(example) for example in examples}


def test_the_split_is_by_picture_disjoint_capped_and_repeatable(tmp_path: Path):
    data = dataset(DatasetStore(tmp_path / "data"), range(100), questions=3)
    held_out = HeldOut(tmp_path / "held", ratio=0.2, cap=200)
    split = held_out.split("a", data)
    stored = held_out.dataset("a")
    assert stored is not None
    assert 10 <= len(keys(stored.examples)) == split.held_out_pictures <= 30
    assert keys(stored.examples) & keys(split.train) == set()
    assert len(split.train) == (100 - split.held_out_pictures) * 3
    assert held_out.split("a", data) == split
    capped = HeldOut(tmp_path / "other", ratio=0.2, cap=3).split("a", data)
    assert capped.held_out_pictures == 3
    assert capped.train == split.train


def test_the_side_of_a_picture_does_not_depend_on_its_batch(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    whole = HeldOut(tmp_path / "whole").split("a", dataset(store, range(100)))
    parts = HeldOut(tmp_path / "parts")
    trained: set[str] = set()
    earlier = None
    for start in range(0, 100, 25):
        split = parts.split("a", dataset(store, range(start, start + 25)), earlier)
        trained |= keys(split.train)
        earlier = split.dataset_id
    assert trained == keys(whole.train)
    assert earlier == whole.dataset_id


def test_later_batches_never_train_on_what_was_held_out_nor_measure_on_what_was_trained(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    held_out = HeldOut(tmp_path / "held", ratio=0.2, cap=200)
    first = held_out.split("a", dataset(store, range(20)))
    trained = keys(first.train)
    second = held_out.split("a", dataset(store, range(60)), first.dataset_id)
    stored = held_out.dataset("a", second.dataset_id)
    assert stored is not None
    measured = keys(stored.examples)
    assert second.dataset_id != first.dataset_id
    assert measured & (trained | keys(second.train)) == set()
    assert len(measured) == second.held_out_pictures > first.held_out_pictures
    assert held_out.split("a", dataset(store, range(60)), first.dataset_id) == second


def test_what_a_rejected_job_held_out_is_not_measured_on_by_the_next(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    held_out = HeldOut(tmp_path / "held")
    rejected = held_out.split("task-1", dataset(store, range(50)))
    assert rejected.held_out_pictures
    batch = dataset(store, range(50, 100))
    assert held_out.names_in_use(besides=batch.ref.id) == {"task-1"}
    fresh = held_out.split("task-1", batch)
    stored = held_out.dataset("task-1", fresh.dataset_id)
    assert stored is not None
    assert keys(stored.examples) <= keys(batch.examples)
    assert held_out.names_in_use(besides=batch.ref.id) == set()


def test_tasks_with_the_same_pictures_hold_out_the_same_pictures(tmp_path: Path):
    data = dataset(DatasetStore(tmp_path / "data"), range(30))
    held_out = HeldOut(tmp_path / "held")
    held_out.split("a", data)
    held_out.split("b", data)
    assert held_out.record("a").held_out == held_out.record("b").held_out


def test_a_batch_under_the_bar_altogether_still_teaches(tmp_path: Path):
    split = HeldOut(tmp_path / "held", ratio=0.9).split("a", dataset(DatasetStore(tmp_path / "d"), range(1)))
    assert (len(split.train), split.dataset_id) == (1, None)


@pytest.mark.parametrize(("pictures", "held"), [(1, 0), (2, 1), (3, 1)])
def test_tiny_batches_keep_something_to_learn_from(tmp_path: Path, pictures: int, held: int):
    held_out = HeldOut(tmp_path / "held")
    data = dataset(DatasetStore(tmp_path / "data"), range(pictures))
    split = held_out.split("a", data)
    assert held_out.split("a", data) == split
    assert split.held_out_pictures == held
    assert len(split.train) == pictures - held
    assert (held_out.dataset("a") is None) == (held == 0)


@pytest.mark.parametrize(
    ("answers", "pictures", "questions", "least", "max_chance"),
    [
        (2, 30, 1, 10, 0.05),
        (2, 24, 1, 8, 0.05),
        (2, 30, 5, 4, 0.05),
        (4, 30, 1, 6, 0.05),
        (30, 30, 1, 4, 0.05),
        (2, 60, 1, 10, 0.05),
        (2, 60, 1, 20, 0.001),
        (2, 60, 1, 4, 1.0),
    ],
)
def test_a_new_task_holds_out_enough_to_be_told_from_luck(
    tmp_path: Path, answers: int, pictures: int, questions: int, least: int, max_chance: float
):
    store = DatasetStore(tmp_path / "data")
    held_out = HeldOut(tmp_path / "held", ratio=0.01, max_chance=max_chance)
    examples = [
        Example(f"{n}-{q}", f"{n}.png", (Turn(f"question {q}?", str(n % answers)),))
        for n in range(pictures)
        for q in range(questions)
    ]
    images = {f"{n}.png": png(n) for n in range(pictures)}
    split = held_out.split("a", store.open(store.put_examples(examples, images).id))
    assert split.held_out_pictures == least
    assert len(split.train) == (pictures - least) * questions


def test_examples_without_pictures_are_split_by_question(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    examples = [Example(str(n), None, (Turn(f"What is {n} + 1?", str(n + 1)),)) for n in range(40)]
    held_out = HeldOut(tmp_path / "held")
    split = held_out.split("sums", store.open(store.put_examples(examples).id))
    stored = held_out.dataset("sums")
    assert stored is not None
    assert 0 < len(stored.examples) == 40 - len(split.train)
    assert keys(stored.examples) & keys(split.train) == set()


def test_what_was_held_out_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = dataset(DatasetStore(tmp_path / "data"), range(20))
    real, synced = os.fsync, set()

    def fsync(handle: int) -> None:
        synced.add(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    HeldOut(tmp_path / "held" / "m").split("a", data)
    assert {tmp_path, tmp_path / "held", tmp_path / "held" / "m", tmp_path / "held" / "m" / "a"} <= synced


def test_a_split_that_could_not_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataset(DatasetStore(tmp_path / "data"), range(20))
    held_out = HeldOut(tmp_path / "held")
    held_out.split("a", data)
    before = sorted((tmp_path / "held" / "a").iterdir())

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        held_out.split("a", data)
    assert sorted((tmp_path / "held" / "a").iterdir()) == before


def test_of_corrections_nothing_is_held_out_and_what_is_measured_stays(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    held_out = HeldOut(tmp_path / "held")
    first = held_out.split("a", dataset(store, range(40)))
    assert first.dataset_id is not None
    known = keys(held_out.dataset("a").examples)  # type: ignore[union-attr]
    corrections = dataset(store, range(20, 60))
    split = held_out.split("a", corrections, first.dataset_id, learn_all=True)
    assert split.train == corrections.examples
    assert split.dataset_id == first.dataset_id
    assert keys(held_out.dataset("a").examples) == known  # type: ignore[union-attr]
    record = held_out.record("a")
    assert record.held_out == known
    assert record.held_out & record.trained == frozenset()
    alone = held_out.split("b", corrections, learn_all=True)
    assert (len(alone.train), alone.dataset_id, alone.held_out_pictures) == (40, None, 0)
