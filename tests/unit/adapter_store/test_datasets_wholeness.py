"""Nothing of an upload is dropped in silence, and no fault hides another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapter_store.datasets import DatasetStore, Limits
from tests.unit.adapter_store.uploads import lines, png, report_of, row, talk, url, zip_of

GOOD = json.dumps(row())


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (f"[{GOOD}]\n[{GOOD}]\n", 2, "follows the end of the array"),
        (f"[{GOOD}],{GOOD}", 1, "follows the end of the array"),
        (f"[{GOOD}]{GOOD}", 1, "follows the end of the array"),
        (f"[{GOOD}]\n\n garbage", 3, "follows the end of the array"),
        (f'{{"examples": [{GOOD}]}}\n{GOOD}', 2, "follows the end of the array"),
        (f'{{"examples": [{GOOD}]\n', 2, "ends before the closing }"),
        (f'{{"examples": [{GOOD}] 5}}', 1, "a comma or } is missing"),
        (f'{{"data": [{GOOD}], "version"', 1, "not valid JSON"),
        (f'{{"data": [{GOOD}], "version": }}', 1, "not valid JSON"),
        (f'{{"data": [{GOOD}],\n"more": [{GOOD}]}}', 2, 'the field "more" beside the examples'),
    ],
)
def test_nothing_behind_an_array_is_dropped_in_silence(
    tmp_path: Path, content: str, line: int, words: str
) -> None:
    (fault,) = report_of(tmp_path, content.encode()).faults
    assert fault.line == line
    assert words in fault.reason


def test_plain_fields_around_the_wrapped_array_are_no_fault(tmp_path: Path) -> None:
    report = report_of(tmp_path, f'{{"v": 1, "data": [{GOOD}], "note": "x", "n": 2}}\n'.encode())
    assert (report.ok, report.examples) == (True, 1)


@pytest.mark.parametrize("bad", ["oops", "5", '"text"', "{", '{"question": "What?",'])
def test_a_bad_first_line_hides_no_other_fault(tmp_path: Path, bad: str) -> None:
    rows = [bad, row(), row(answer=""), "oops", row(question="")]
    report = report_of(tmp_path, lines(rows))
    assert {1, 3, 5} <= {fault.line for fault in report.faults}
    packed = report_of(tmp_path, zip_of({"d.jsonl": lines(rows)}))
    assert [(f.line, f.field) for f in packed.faults] == [(f.line, f.field) for f in report.faults]


@pytest.mark.parametrize("blank", [600, 70_000])
def test_blank_lines_before_the_data_are_skipped(tmp_path: Path, blank: int) -> None:
    for content in (lines([row()]), json.dumps([row()]).encode(), json.dumps({"data": [row()]}).encode()):
        assert report_of(tmp_path, b"\n" * blank + content).examples == 1


def test_a_layout_fault_names_its_element(tmp_path: Path) -> None:
    report = report_of(tmp_path, json.dumps([row(), row(), talk("Hi")]).encode())
    assert [(fault.line, fault.field) for fault in report.faults] == [(1, "[2]")]
    report = report_of(tmp_path, json.dumps([row()] * 3).encode(), Limits(max_examples=2))
    assert [(fault.line, fault.field) for fault in report.faults] == [(1, "[2]")]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_no_answer(tmp_path: Path, number: str) -> None:
    (fault,) = report_of(tmp_path, f'[{{"question": "How many?", "answer": {number}}}]'.encode()).faults
    assert fault.field == "[0].answer"
    assert "finite" in fault.reason


@pytest.mark.parametrize("name", ["role", "type"])
def test_a_record_that_is_nested_too_deeply_is_its_own_fault_only(tmp_path: Path, name: str) -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    message = {"role": deep} if name == "role" else {"role": "user", "content": [{"type": deep}]}
    rows = [row(), {"messages": [message]}, row(answer="")]
    report = DatasetStore(tmp_path).validate_examples(rows)
    assert [(fault.line, fault.field) for fault in report.faults] == [(2, "[1]"), (3, "[2].answer")]
    while isinstance(deep, list):  # dropped level by level: Python's own way down is a recursion
        deep = deep.pop()


def test_a_zip_of_pictures_alone_is_told_what_makes_it_a_data_set(tmp_path: Path) -> None:
    (fault,) = report_of(tmp_path, zip_of({"robin/1.png": png(), "wren/1.png": png("blue")})).faults
    assert "examples/teach.py" in fault.reason


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (row("data:image/png;base64,AAAA", answer=" "), {"answer", "image"}),
        (row("data:image/png;base64,AAAA", question=None), {"question", "image"}),
        (row("gone.png", answer=["red"]), {"answer", "image"}),
        (row("gone.png", id=["x"]), {"id", "image"}),
        (talk("<image>What?", " ", "gone.png"), {"conversations[1].value", "image"}),
        ({"conversations": [], "image": "gone.png"}, {"conversations", "image"}),
        ({"conversations": ["red"], "images": ["gone.png"]}, {"conversations[0]", "images[0]"}),
    ],
)
def test_a_fault_of_the_text_does_not_hide_that_of_the_picture(
    tmp_path: Path, record: dict[str, Any], fields: set[str]
) -> None:
    assert {fault.field for fault in report_of(tmp_path, lines([record])).faults} == fields


def test_the_picture_of_a_faulty_record_is_none_of_the_data_set(tmp_path: Path) -> None:
    good, other = (row(url(png(color))) for color in ("red", "blue"))
    report = report_of(tmp_path, lines([good, {**other, "answer": " "}]))
    assert [fault.field for fault in report.faults] == ["answer"]
    assert (report.examples, report.images) == (1, 1)


def test_pictures_that_are_missing_are_all_that_is_wrong(tmp_path: Path) -> None:
    rows = [("a.png", "red", "train"), ("b.png", "blue", "train"), ("c.png", "red", "test")]
    content = "image,question,answer,split\n" + "".join(f"{i},Which?,{a},{s}\n" for i, a, s in rows)
    report = report_of(tmp_path, content.encode())
    assert [(fault.line, fault.field) for fault in report.faults] == [(n, "image") for n in (2, 3, 4)]
    said = " ".join(warning.reason for warning in report.warnings)
    assert "otherwise" not in said
    assert "train part and in the test part" not in said
    assert (report.duplicates, report.split.train_images, report.split.test_images) == (0, 2, 1)


def test_a_missing_picture_that_is_named_twice_is_one_picture(tmp_path: Path) -> None:
    report = report_of(
        tmp_path, lines([row("a.png"), row("a.png"), row({"path": None}), row({"path": None})])
    )
    assert (len(report.faults), report.duplicates) == (4, 1)


@pytest.mark.parametrize("lost", [row(url(png()), answer=""), "oops"], ids=["faulty", "unreadable"])
def test_nothing_is_said_of_the_whole_while_a_record_is_left_out(tmp_path: Path, lost: Any) -> None:
    rows = [row(url(png("blue")), split="test"), row(url(png("green")), split="test")]
    alone = report_of(tmp_path, lines(rows))
    assert [fault.field for fault in alone.faults] == ["split"]
    assert [warning.field for warning in alone.warnings] == ["answer"]
    report = report_of(tmp_path, lines([*rows, lost]))
    assert [fault.line for fault in report.faults] == [3]
    assert report.warnings == ()


def test_nothing_is_said_of_the_whole_of_data_that_was_cut_off(tmp_path: Path) -> None:
    rows = [row(url(png(color)), split="test") for color in ("blue", "green", "red")]
    report = report_of(tmp_path, lines(rows), Limits(max_examples=2))
    assert ["more than 2 examples" in fault.reason for fault in report.faults] == [True]
    assert report.warnings == ()


def test_faults_come_in_the_order_of_files_and_lines(tmp_path: Path) -> None:
    half = url(png()[:40])  # found when pictures are decoded, after all records
    rows = [row(), row(half), row(answer=""), row("lost.png"), row(answer="")]
    in_lines = report_of(tmp_path, lines(rows))
    assert [fault.line for fault in in_lines.faults] == [2, 3, 4, 5]
    in_array = report_of(tmp_path, json.dumps(rows).encode())
    assert [fault.field for fault in in_array.faults] == [
        "[1].image",
        "[2].answer",
        "[3].image",
        "[4].answer",
    ]
    others = [row(), row(url(png(size=(5, 5))[:40])), *rows[2:]]
    broken = zip_of({"a.jsonl": lines(rows), "b.jsonl": lines(others)})
    places = [(fault.file, fault.line) for fault in report_of(tmp_path, broken).faults]
    assert places == [(name, line) for name in ("a.jsonl", "b.jsonl") for line in (2, 3, 4, 5)]


def test_files_are_called_unused_only_where_no_record_is_left_out(tmp_path: Path) -> None:
    files = {"a.png": png(), "b.png": png("blue")}
    used = [row("a.png")]

    def said(**data: bytes) -> list[str]:
        packed = zip_of({**{name.replace("_", "."): content for name, content in data.items()}, **files})
        return [
            warning.reason for warning in report_of(tmp_path, packed).warnings if "used" in warning.reason
        ]

    assert said(d_jsonl=lines(used)) == ["1 file of the archive is not used by any example"]
    assert said(d_jsonl=lines([*used, row("gone.png")])) == [
        "1 file of the archive is not used by any example"
    ]
    for lost in (row("b.png", answer=""), "oops"):
        assert said(d_jsonl=lines([*used, lost])) == []
    assert said(d_jsonl=lines(used), e_json=b"no JSON") == []
