"""A report covers the whole upload: nothing behind a broken or closed part is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.adapter_store.test_datasets_faults import png, report_of, row, talk, zip_of

GOOD = '{"question": "a", "answer": "b"}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"[{GOOD}]\n[{GOOD}]", "follows the end of the array"),
        (f'[{GOOD}],{{"question": "q"}}', "follows the end of the array"),
        (f"[{GOOD}] garbage", "follows the end of the array"),
        (f'{{"examples": [{GOOD}]', "does not end"),
        (f'{{"examples": [{GOOD}], "name":', "not valid JSON"),
        (f'{{"examples": [{GOOD}], "more": [{GOOD}]}}', '"more"'),
        (f'{{"data": [{GOOD}]}} garbage', "follows the end of the object"),
    ],
)
def test_nothing_behind_the_records_is_lost_in_silence(tmp_path: Path, text: str, words: str) -> None:
    report = report_of(tmp_path, text.encode())
    assert [words in fault.reason for fault in report.faults] == [True]


@pytest.mark.parametrize("rest", ["", ', "version": 1, "info": {"by": "me"}, "tags": ["x"]'])
def test_an_object_around_the_records_may_say_more(tmp_path: Path, rest: str) -> None:
    report = report_of(tmp_path, f'{{"data": [{GOOD}, {GOOD}]{rest}}}\n'.encode())
    assert (report.faults, report.examples) == ((), 2)


@pytest.mark.parametrize("first", ["oops", "5", "\n" * 600])
def test_a_broken_first_line_hides_no_other_fault(tmp_path: Path, first: str) -> None:
    report = report_of(tmp_path, f'{first}\n{GOOD}\n{{"question": "q"}}\n'.encode())
    assert [fault.field for fault in report.faults][-1] == "answer"
    assert len(report.faults) == (1 if first.isspace() else 2)


def test_a_layout_fault_names_its_record(tmp_path: Path) -> None:
    rows = [row(), row(answer="blue"), {"messages": talk("q")["conversations"], "image": None}]
    report = report_of(tmp_path, json.dumps(rows).encode())
    assert [fault.field for fault in report.faults if "layout" in fault.reason] == ["[2]"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_none_is_no_answer(tmp_path: Path, value: str) -> None:
    report = report_of(tmp_path, f'[{{"question": "q", "answer": {value}}}]'.encode())
    assert [fault.field for fault in report.faults] == ["[0].answer"]


def test_a_zip_of_pictures_alone_says_how_to_teach_from_them(tmp_path: Path) -> None:
    (fault,) = report_of(tmp_path, zip_of({"robin/1.png": png(), "robin/2.png": png("blue")})).faults
    assert "examples/teach.py" in fault.reason
