"""What is measured on is never trained on."""

from __future__ import annotations

import io
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
    data = dataset(DatasetStore(tmp_path / "data"), range(40), questions=3)
    held_out = HeldOut(tmp_path / "held", ratio=0.2, cap=200)
    split = held_out.split("a", data)
    stored = held_out.dataset("a")
    assert stored is not None
    assert len(keys(stored.examples)) == split.held_out_pictures == 8
    assert keys(stored.examples) & keys(split.train) == set()
    assert len(split.train) == 32 * 3
    assert held_out.split("a", data).train == split.train
    assert HeldOut(tmp_path / "other", ratio=0.2, cap=3).split("a", data).held_out_pictures == 3


def test_later_batches_never_train_on_what_was_held_out_nor_measure_on_what_was_trained(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    held_out = HeldOut(tmp_path / "held", ratio=0.2, cap=200)
    first = held_out.split("a", dataset(store, range(20)))
    trained = keys(first.train)
    second = held_out.split("a", dataset(store, range(60)))
    stored = held_out.dataset("a")
    assert stored is not None
    measured = keys(stored.examples)
    assert second.grown
    assert measured & (trained | keys(second.train)) == set()
    assert len(measured) == second.held_out_pictures == 4 + 8


def test_tasks_with_the_same_pictures_hold_out_the_same_pictures(tmp_path: Path):
    data = dataset(DatasetStore(tmp_path / "data"), range(30))
    held_out = HeldOut(tmp_path / "held")
    held_out.split("a", data)
    held_out.split("b", data)
    assert held_out.record("a").held_out == held_out.record("b").held_out


@pytest.mark.parametrize(("pictures", "held"), [(1, 0), (2, 1), (3, 1), (10, 2)])
def test_tiny_batches_keep_something_to_learn_from(tmp_path: Path, pictures: int, held: int):
    held_out = HeldOut(tmp_path / "held")
    split = held_out.split("a", dataset(DatasetStore(tmp_path / "data"), range(pictures)))
    assert split.held_out_pictures == held
    assert len(split.train) == pictures - held
    assert (held_out.dataset("a") is None) == (held == 0)


def test_examples_without_pictures_are_split_by_question(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    examples = [Example(str(n), None, (Turn(f"What is {n} + 1?", str(n + 1)),)) for n in range(10)]
    held_out = HeldOut(tmp_path / "held")
    split = held_out.split("sums", store.open(store.put_examples(examples).id))
    stored = held_out.dataset("sums")
    assert stored is not None
    assert len(stored.examples) == 2
    assert keys(stored.examples) & keys(split.train) == set()
