"""What the data itself calls a test is held out and never trained on."""

from __future__ import annotations

from pathlib import Path

from adapter_store.datasets import Dataset, DatasetStore, Example, Turn
from adapter_store.datasets.records import Part
from tests.unit.trainer_worker.test_heldout import keys, png
from trainer_worker.heldout import HeldOut


def dataset(store: DatasetStore, train: range, test: range, questions: int = 2) -> Dataset:
    parts: list[tuple[Part, range]] = [("train", train), ("test", test)]
    examples = [
        Example(f"{part}-{n}-{q}", f"{n}.png", (Turn(f"question {q}?", f"{n}"),), part)
        for part, numbers in parts
        for n in numbers
        for q in range(questions)
    ]
    return store.open(store.put_examples(examples, {f"{n}.png": png(n) for n in (*train, *test)}).id)


def test_the_given_test_pictures_and_no_others_are_held_out(tmp_path: Path):
    data = dataset(DatasetStore(tmp_path / "data"), range(60), range(100, 107))
    held_out = HeldOut(tmp_path / "held", ratio=0.5)
    split = held_out.split("a", data)
    stored = held_out.dataset("a")
    assert stored is not None
    tests = keys(example for example in data.examples if example.split == "test")
    assert keys(stored.examples) == tests
    assert keys(split.train) == keys(data.examples) - tests
    assert (split.held_out_pictures, len(split.train)) == (7, 120)
    assert held_out.split("a", data) == split


def test_a_picture_of_both_parts_is_never_trained(tmp_path: Path):
    data = dataset(DatasetStore(tmp_path / "data"), range(10), range(8, 12))
    split = HeldOut(tmp_path / "held").split("a", data)
    tests = keys(example for example in data.examples if example.split == "test")
    assert split.held_out_pictures == len(tests) == 4
    assert keys(split.train) & tests == set()
    assert len(split.train) == 16


def test_what_was_trained_before_is_neither_measured_on_nor_trained_again(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    held_out = HeldOut(tmp_path / "held")
    first = held_out.split("a", dataset(store, range(20), range(20, 24)))
    later = dataset(store, range(30, 40), range(10, 26))
    second = held_out.split("a", later, first.dataset_id)
    stored = held_out.dataset("a", second.dataset_id)
    assert stored is not None
    trained = keys(first.train)
    assert keys(stored.examples) & trained == set()
    assert second.held_out_pictures == 6  # 20 to 25; 10 to 19 were learned
    assert len(keys(second.train)) == 10
    assert held_out.split("a", later, first.dataset_id) == second


def test_what_was_held_out_before_stays_so_whatever_it_is_called_now(tmp_path: Path):
    store = DatasetStore(tmp_path / "data")
    held_out = HeldOut(tmp_path / "held")
    first = held_out.split("a", dataset(store, range(20), range(20, 24)))
    second = held_out.split("a", dataset(store, range(20, 30), range(40, 42)), first.dataset_id)
    assert len(keys(second.train)) == 6
    assert second.held_out_pictures == 6
