"""Streams: no picture, and nothing that a picture was made from, is on both sides."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapter_store.datasets import DatasetStore
from adapter_store.errors import InputError
from benchmarks.forgetting.patterns import PATTERNS, paint
from benchmarks.forgetting.streams import divide, read_stream
from benchmarks.forgetting.worlds import Item


def items(answers: str, groups: int, of_each: int) -> list[Item]:
    return [
        Item(Image.new("RGB", (4, 4), (group, view, ord(answer))), answer, f"{answer}{group}")
        for answer in answers
        for group in range(groups)
        for view in range(of_each)
    ]


def test_training_and_test_share_no_group_and_are_balanced():
    world = items("abc", groups=20, of_each=3)
    train, test = divide(world, 60, 30, random.Random(0))
    assert (len(train), len(test)) == (60, 30)
    assert not {item.group for item in train} & {item.group for item in test}
    for part, each in ((train, 20), (test, 10)):
        assert {answer: sum(item.answer == answer for item in part) for answer in "abc"} == dict.fromkeys(
            "abc", each
        )
    assert divide(world, 60, 30, random.Random(0))[0] == train
    assert divide(world, 60, 30, random.Random(1))[0] != train


def test_too_few_pictures_are_said():
    with pytest.raises(InputError, match="pictures of the 30 that are wanted"):
        divide(items("ab", groups=4, of_each=1), 60, 30, random.Random(0))


def upload(path: Path, answers: list[str]) -> None:
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for number, answer in enumerate(answers):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (number, 0, len(answer))).save(buffer, format="PNG")
            archive.writestr(f"{number}.png", buffer.getvalue())
            turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
            rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
        archive.writestr("data.json", json.dumps(rows))


def test_a_folder_of_llava_data_sets_is_a_stream(tmp_path: Path):
    folder, store = tmp_path / "stream", DatasetStore(tmp_path / "store")
    for name in ("02-birds", "01-cars"):
        (folder / name).mkdir(parents=True)
        for part, count in (("train", 3), ("test", 2)):
            upload(folder / name / f"{part}.zip", ["x"] * count)
    stages = read_stream(folder, store)
    assert [(stage.name, stage.teaches) for stage in stages] == [("cars", "cars"), ("birds", "birds")]
    assert [len(stage.train.examples) for stage in stages] == [3, 3]
    (folder / "01-cars").rename(folder / "03-birds")
    with pytest.raises(InputError, match="second folder of a task 'birds'"):
        read_stream(folder, store)
    (folder / "03-birds").rename(folder / "03-Remote Sensing")
    with pytest.raises(InputError, match="'Remote Sensing' is not allowed"):
        read_stream(folder, store)
    (folder / "03-Remote Sensing").rename(folder / "01-cars")
    (folder / "02-birds" / "test.zip").unlink()
    with pytest.raises(InputError, match=r"02-birds needs exactly one file called test\.\*"):
        read_stream(folder, store)


def test_answers_with_few_groups_have_enough_test_pictures():
    world = [*items("a", groups=60, of_each=2), *items("b", groups=12, of_each=10)]
    for seed in range(20):
        train, test = divide(world, 60, 30, random.Random(seed))
        assert not {item.group for item in train} & {item.group for item in test}
        assert sum(item.answer == "b" for item in test) == 15


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_shows_both_colors_and_differs_by_seed(name: str):
    pictures = [paint(name, 60, (0, 0, 0), (255, 255, 255), np.random.default_rng(seed)) for seed in (0, 1)]
    for picture in pictures:
        assert picture.size == (60, 60)
        assert 0.05 < np.asarray(picture).mean() / 255 < 0.95
    assert np.asarray(pictures[0]).tobytes() != np.asarray(pictures[1]).tobytes()
