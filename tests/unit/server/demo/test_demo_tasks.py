"""The demo's tasks are real, balanced, split by picture, and uploadable as they are."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from adapter_store.base.download import default_cache_dir
from adapter_store.datasets import DatasetStore
from adapter_store.errors import NotFoundError
from adapter_store.images import image_digest
from server.demo.pictures import PicturesDamaged, unpickle_array
from server.demo.tasks import CLASSES, DemoTask, demo_lessons, load_task, write_llava_zip


@pytest.fixture(scope="module", params=["digits", "animals"])
def task(request: pytest.FixtureRequest) -> DemoTask:
    return load_task(request.param, default_cache_dir(), train=60, heldout=30)


def test_both_parts_are_balanced_and_share_no_picture(task: DemoTask) -> None:
    classes = len(CLASSES[task.name])
    assert Counter(item.answer for item in task.train) == dict.fromkeys(CLASSES[task.name], 60 // classes)
    assert Counter(item.answer for item in task.heldout) == dict.fromkeys(CLASSES[task.name], 30 // classes)
    train = {image_digest(item.picture) for item in task.train}
    held = {image_digest(item.picture) for item in task.heldout}
    assert (len(train), len(held), len(train & held)) == (60, 30, 0)
    assert {item.question for item in task.train} == set(task.questions)
    assert {(item.picture.mode, item.picture.size) for item in task.train} == {("RGB", (84, 84))}


def test_more_training_pictures_leave_the_held_out_ones_alone(task: DemoTask) -> None:
    again = load_task(task.name, default_cache_dir(), train=120, heldout=30)
    assert [image_digest(a.picture) for a in again.heldout] == [image_digest(b.picture) for b in task.heldout]
    assert [item.question for item in again.heldout] == [item.question for item in task.heldout]


def test_the_zip_is_a_data_set_without_faults(task: DemoTask, tmp_path: Path) -> None:
    store = DatasetStore(tmp_path / "datasets")
    dataset = store.open(store.put(write_llava_zip(task.train, tmp_path / "a.zip"), filename="a.zip").id)
    assert dataset.report()["warnings"] == []
    kept = [
        (dataset.image(e.image or "").tobytes(), e.turns[0].question, e.turns[0].answer)
        for e in dataset.examples
    ]
    assert kept == [(item.picture.tobytes(), item.question, item.answer) for item in task.train]


def test_lessons_ask_about_other_pictures_than_they_teach(tmp_path: Path) -> None:
    lessons = demo_lessons(tmp_path, 20, train=40)
    assert [(lesson.task, len(lesson.held_out)) for lesson in lessons] == [("digits", 20), ("animals", 20)]
    assert all(lesson.file.is_file() for lesson in lessons)


def test_unknown_tasks_and_too_many_pictures_are_refused() -> None:
    with pytest.raises(NotFoundError, match="digits, animals"):
        load_task("flags", default_cache_dir())
    with pytest.raises(NotFoundError, match="only"):
        load_task("digits", default_cache_dir(), train=6000)


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 3",)


def test_the_unpickler_rebuilds_plain_arrays_and_nothing_else() -> None:
    plain = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(unpickle_array(pickle.dumps(plain, protocol=4)), plain)
    for bad in (Evil(), np.array([Evil()], dtype=object), np.array([1.5]), {"a": 1}, print):
        with pytest.raises(PicturesDamaged):
            unpickle_array(pickle.dumps(bad, protocol=4))
    with pytest.raises(PicturesDamaged, match="broken"):
        unpickle_array(b"\x80\x04nothing")
