"""What the report counts, which part of the data is for measuring, and whose held-out pictures it meets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapter_store.datasets import DatasetStore, Report
from adapter_store.datasets.decoding import check_all
from adapter_store.datasets.luck import Measuring, binomial_tail, held_back_by_luck
from adapter_store.datasets.records import Context, Limits
from adapter_store.datasets.sources import ImageSource
from adapter_store.datasets.upload import read_upload
from adapter_store.errors import ImageError
from adapter_store.images import decode_image, image_digest
from tests.unit.adapter_store.uploads import lines, png, row, talk, url, zip_of

COLORS = ["red", "green", "blue", "white", "black", "yellow"]


def checked(tmp_path: Path, content: bytes, **beside: Any) -> Report:
    path = tmp_path / "upload"
    path.write_bytes(content)
    return DatasetStore(tmp_path / "data", **beside.pop("store", {})).validate(path, **beside)


def parts(report: Report) -> tuple[bool, int, int, int, int]:
    split = report.split
    return split.given, split.train_examples, split.train_images, split.test_examples, split.test_images


@pytest.mark.parametrize("word", ["test", "Test", "val", "validation", "val2014", "dev", "eval", "held-out"])
def test_a_record_says_which_part_it_is_of(tmp_path: Path, word: str) -> None:
    rows = [row(url(png(c)), answer=c, split="train" if i else word) for i, c in enumerate(COLORS)]
    assert parts(checked(tmp_path, lines(rows))) == (True, 5, 5, 1, 1)
    talks = [
        talk("<image>What?", c, url(png(c)), split=word if i < 2 else None) for i, c in enumerate(COLORS)
    ]
    assert parts(checked(tmp_path, json.dumps(talks).encode())) == (True, 4, 4, 2, 2)


def test_a_part_that_is_not_known_is_a_fault(tmp_path: Path) -> None:
    rows = [row(split="train"), row(split="tset"), row(split=5), row(split=""), row(split=None)]
    report = checked(tmp_path, lines(rows))
    assert [(fault.line, fault.field) for fault in report.faults] == [(2, "split"), (3, "split")]
    assert '"tset" is not known' in report.faults[0].reason


@pytest.mark.parametrize(
    "name", ["test.jsonl", "val.json", "data/test-00000-of-00001.jsonl", "test/metadata.jsonl", "val2.csv"]
)
def test_a_file_says_so_by_its_name(tmp_path: Path, name: str) -> None:
    train = lines([row(url(png(c)), answer=c) for c in COLORS[:4]])
    test = lines([row(url(png(c)), answer=c) for c in COLORS[4:]])
    if name.endswith(".csv"):
        test = b"question,answer\nWhat?,this\nWhy?,that\n"
    report = checked(tmp_path, zip_of({"train.jsonl": train, name: test}))
    images = 0 if name.endswith(".csv") else 2
    assert parts(report) == (True, 4, 4, 2, images)
    alone = checked(tmp_path, zip_of({name: test, "x.txt": b"x"}))
    assert parts(alone) == (False, 2, images, 0, 0)


def test_class_folders_below_train_and_test(tmp_path: Path) -> None:
    files = {f"train/{c}/1.png": png(c) for c in COLORS} | {"test/red/2.png": png("red", (9, 9))}
    report = checked(tmp_path, zip_of(files), question="Which color?")
    assert (report.ok, report.answers, parts(report)) == (True, 6, (True, 6, 6, 1, 1))


def test_a_picture_of_both_parts_is_held_out_with_a_warning(tmp_path: Path) -> None:
    rows = [row(url(png(c)), answer=c) for c in COLORS]
    rows.append(row(url(png("red")), "Which color?", split="test"))
    report = checked(tmp_path, lines(rows))
    assert parts(report) == (True, 5, 5, 2, 1)
    assert "1 picture is in the train part and in the test part" in report.warnings[0].reason


def of_two_answers(pictures: int, tested: int = 0) -> bytes:
    return lines(
        [
            row(url(png(f"#{n:02x}0000")), answer=("yes", "no")[n % 2], split="test" if n < tested else None)
            for n in range(pictures)
        ]
    )


@pytest.mark.parametrize(
    ("pictures", "tested", "told"),
    [
        (30, 0, "only about 10 pictures are held out"),
        (60, 0, "only about 12 pictures are held out"),
        (100, 0, None),
        (30, 5, "only 5 pictures are held out"),
        (60, 20, None),
        (1, 0, None),
        (2, 0, "only about 1 picture is held out"),
    ],
)
def test_too_few_pictures_to_tell_from_luck_are_a_warning(
    tmp_path: Path, pictures: int, tested: int, told: str | None
) -> None:
    report = checked(tmp_path, of_two_answers(pictures, tested))
    found = [warning.reason for warning in report.warnings if "by luck" in warning.reason]
    assert [bool(told) and told in reason for reason in found] == ([] if told is None else [True])


@pytest.mark.parametrize(
    ("measuring", "told"),
    [
        (Measuring(), "only about 12 pictures are held out"),
        (Measuring(max_chance=1), None),
        (Measuring(max_chance=0.2), None),
        (Measuring(max_chance=0.001), "only about 20 pictures are held out"),
        (Measuring(holdout_ratio=0.5), None),
        (Measuring(holdout_ratio=0), "no picture is held out of a new task"),
    ],
)
def test_the_warning_of_luck_goes_by_the_gate_and_the_split_that_are_set(
    tmp_path: Path, measuring: Measuring, told: str | None
) -> None:
    report = checked(tmp_path, of_two_answers(60), store={"measuring": measuring})
    found = [warning.reason for warning in report.warnings if "held out" in warning.reason]
    assert [bool(told) and told in reason for reason in found] == ([] if told is None else [True])


def test_a_single_picture_cannot_be_measured(tmp_path: Path) -> None:
    picture = url(png())
    rows = [row(picture, "Which color?", answer="red"), row(picture, "How many?", answer="one")]
    (warning,) = checked(tmp_path, lines(rows)).warnings
    assert "no picture is held out" in warning.reason
    assert "give more pictures" in warning.reason


def test_the_chance_of_being_held_back_by_luck_is_the_gates(tmp_path: Path) -> None:
    """Of five questions with two answers all must be right: 1 - 0.9^5; of four even that says nothing."""
    assert held_back_by_luck(5, 0.5, 0.9) == pytest.approx(1 - 0.9**5)
    assert held_back_by_luck(4, 0.5, 1.0) == 1.0
    assert held_back_by_luck(11, 0.5, 0.9) == pytest.approx(1 - binomial_tail(9, 11, 0.9))
    report = checked(tmp_path, of_two_answers(30, 5))
    assert "about 41%" in report.warnings[0].reason


def test_a_known_task_is_not_warned_of_luck(tmp_path: Path) -> None:
    """A batch that is too small is judged by what the task is measured on already."""
    held = {"store": {"held_out": tmp_path / "held"}}
    (tmp_path / "held" / "known").mkdir(parents=True)
    (tmp_path / "held" / "known" / "split.json").write_text('{"held_out": ["aa"]}')
    for task, count in (("known", 0), ("new", 1)):
        report = checked(tmp_path, of_two_answers(30), task=task, store=dict(held["store"]))
        assert sum("by luck" in warning.reason for warning in report.warnings) == count


def test_a_data_set_of_nothing_but_tests_is_refused(tmp_path: Path) -> None:
    report = checked(tmp_path, lines([row(url(png(c)), answer=c, split="test") for c in COLORS]))
    assert [fault.field for fault in report.faults] == ["split"]
    assert "leave at least one picture in the train part" in report.faults[0].reason


def test_the_part_is_stored_and_old_data_keeps_its_id(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path / "data")
    plain = store.put_examples([row(url(png()), answer="red", id="a")])
    content = (tmp_path / "data" / plain.id / "examples.jsonl").read_text()
    assert set(json.loads(content)) == {"id", "image", "turns"}
    both = [row(url(png()), id="a"), row(url(png("blue")), answer="blue", id="b", split="test")]
    stored = store.open(store.put_examples(both).id)
    assert [example.split for example in stored.examples] == [None, "test"]
    images = {name: stored.image_bytes(name) for name in (e.image for e in stored.examples) if name}
    again = store.open(store.put_examples(stored.examples, images).id)
    assert again.ref == stored.ref


def key(color: str) -> str:
    return image_digest(decode_image(png(color)))


def test_overlap_with_the_held_out_pictures_of_other_tasks(tmp_path: Path) -> None:
    for task, colors in {"colors": COLORS[:2], "hues": COLORS[1:4], "own": COLORS, "far": ["pink"]}.items():
        (tmp_path / "held" / task).mkdir(parents=True)
        content = {"held_out": [key(color) for color in colors], "trained": []}
        (tmp_path / "held" / task / "split.json").write_text(json.dumps(content))
    (tmp_path / "held" / "broken").mkdir()
    (tmp_path / "held" / "broken" / "split.json").write_text("{")
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(jpeg, format="WEBP", lossless=True)
    rows = [row(url(jpeg.getvalue()), answer="red"), *(row(url(png(c)), answer=c) for c in COLORS[1:3])]
    store = {"held_out": tmp_path / "held"}
    report = checked(tmp_path, lines(rows), store=store, task="own")
    assert [(found.task, found.images) for found in report.overlap] == [("colors", 2), ("hues", 2)]
    assert sum("held out to measure the task" in warning.reason for warning in report.warnings) == 2
    assert report.to_dict()["overlap"][0] == {"task": "colors", "images": 2}
    nobody = checked(tmp_path, lines(rows), store=store)
    assert [found.task for found in nobody.overlap] == ["colors", "hues", "own"]


def test_lengths_are_in_tokens_where_they_can_be_counted(tmp_path: Path) -> None:
    rows = [row(answer="x " * n, question="a bc") for n in range(1, 101)]
    report = checked(tmp_path, lines(rows))
    assert (report.length_unit, report.question_lengths.longest) == ("characters", 4)
    counted = {"count_tokens": lambda texts: [len(text.split()) for text in texts]}
    report = checked(tmp_path, lines(rows), store=counted)
    lengths = report.answer_lengths
    assert (report.length_unit, lengths.median, lengths.p95, lengths.longest) == ("tokens", 50, 95, 100)
    assert (report.question_lengths.median, report.question_lengths.longest) == (2, 2)


def test_the_tokenizer_of_a_base_counts(tmp_path: Path, tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    from adapter_store.datasets.tokens import find_tokenizer

    counter = find_tokenizer(str(tiny_base), tmp_path, is_embedded=False)
    assert counter is not None
    texts = ["What is shown?", "", "a b c d"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    wanted = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    assert counter(texts) == wanted
    assert find_tokenizer("nobody/has-this", tmp_path, is_embedded=False) is None
    assert find_tokenizer("embedded", tmp_path, is_embedded=True) is None


def test_threads_keep_the_order_and_the_faults(tmp_path: Path) -> None:
    names = {}
    source = ImageSource(tmp_path, Limits(max_image_pixels=1000))
    for number in range(300):
        data = png(size=(60, 60)) if number % 100 == 99 else png(size=(number % 7 + 1, 3))
        names[source.add_bytes(data + bytes([number % 256, number // 256]))] = number % 100 == 99
    found = list(check_all(source, list(names), threads=4))
    assert [name for name, _ in found] == list(names)
    assert [isinstance(result, ImageError) for _, result in found] == list(names.values())


def test_progress_is_told_in_every_phase(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    path = tmp_path / "upload"
    path.write_bytes(zip_of({"d.jsonl": lines([row("a.png"), row("a.png", "Why?")]), "a.png": png()}))
    context = Context(tell=lambda title, done, total: heard.append((title, done, total)))
    _, source, _ = read_upload(path, context=context)
    source.close()
    assert [title for title, _, _ in heard] == ["unpacking", "unpacking", "reading", "checking pictures"]
    assert heard[1][2] == path.stat().st_size > heard[1][1] > 0
    assert heard[-1][1:] == (1, 1)
