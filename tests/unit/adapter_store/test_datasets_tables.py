"""Tables and folders of pictures: every dialect gives the same examples, and their faults are all told."""

from __future__ import annotations

import io
import json
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from adapter_store.datasets import DatasetStore, Limits, Turn, read_upload
from tests.unit.adapter_store.uploads import lines, png, report_of, row, tar_of, zip_of

HEADER = "image,question,answer\n"
PICTURES = {"p/1.png": png("red"), "p/2.png": png("blue")}
ROWS = [("p/1.png", "What color, caf\u00e9?", "red"), ("p/2.png", "What color, caf\u00e9?", 'so "blue"')]


def written(delimiter: str, names: tuple[str, str, str] = ("image", "question", "answer")) -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if delimiter in text or '"' in text else text

    return "".join(delimiter.join(map(cell, cells)) + "\r\n" for cells in (names, *ROWS))


DIALECTS = {
    "comma": written(",").encode(),
    "semicolon": written(";").encode(),
    "tab": written("\t").encode(),
    "bar": written("|").encode(),
    "Excel's first line": ("sep=;\r\n" + written(";")).encode(),
    "UTF-8 with mark": b"\xef\xbb\xbf" + written(",").encode(),
    "UTF-16": written("\t").encode("utf-16"),
    "Windows-1252": written(";").encode("cp1252"),
    "other names": written(",", ("File Name", "prompt", "Label")).encode(),
    "blank lines and empty cells": ("\r\n" + written(",").replace("\r\n", ",,\r\n") + ",,,,\r\n").encode(),
}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_gives_the_same_examples(tmp_path: Path, name: str, kind: str) -> None:
    files = {"list.csv": DIALECTS[name], **PICTURES}
    path = tmp_path / "upload"
    tar = [(tarfile.TarInfo(member), data) for member, data in files.items()]
    path.write_bytes(zip_of(files) if kind == "zip" else tar_of(*tar))
    examples, source, report = read_upload(path)
    source.close()
    assert report.faults == ()
    assert [example.turns for example in examples] == [(Turn(q, a),) for _, q, a in ROWS]
    assert (report.images, report.format) == (2, f"examples ({kind})")
    guessed = [warning for warning in report.warnings if "Windows-1252" in warning.reason]
    assert len(guessed) == (name == "Windows-1252")


def test_a_cell_may_hold_line_breaks(tmp_path: Path) -> None:
    text = HEADER + 'p/1.png,"What\ncolor?",red\np/2.png,What?,\n'
    report = report_of(tmp_path, zip_of({"list.csv": text.encode(), **PICTURES}))
    assert [(fault.line, fault.field) for fault in report.faults] == [(4, "answer")]


def test_all_faults_of_a_table_come_together(tmp_path: Path) -> None:
    table = [
        "id,image,question,answer",
        "1,p/1.png,What?,red",
        "2,../../etc/passwd,What?,red",
        "3,http://169.254.169.254/,What?,red",
        "4,p/1.png,What?",
        "5,p/1.png,What?,red,more",
        '6,p/1.png,"What?,red',
        "7,,What?,red",
        "8,missing.png,What?,red",
        "1,p/1.png,Why?,red",
        "10,p/1.png,,red",
        '11,p/1.png,"What" ever?,red',
        "12,p/1.png,nul \0,red",
        "13,p/2.png,What?,blue",
    ]
    content = ("\n".join(table) + "\n").encode() + b"14,p/1.png,caf\xe9,caf\xe9\n"
    content += "15,p/1.png,caf\u00e9?,caf\u00e9\n".encode()
    report = report_of(tmp_path, zip_of({"list.csv": content, **PICTURES}))
    reasons = {fault.line or 0: fault.reason for fault in report.faults}
    assert sorted(reasons) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15]
    for line, words in {
        3: '".."',
        4: "never fetched",
        5: "3 cells",
        6: "5 cells",
        7: "not closed",
        8: "names no picture",
        9: "not in the archive",
        10: "used before, on line 2",
        11: "empty",
        12: "closing quotation mark",
        13: "NUL",
        15: "not UTF-8",
    }.items():
        assert words in reasons[line]
    assert all(fault.file == "list.csv" for fault in report.faults)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"p/1.png,What?,red\n", "must name the columns"),
        (b"", "must name the columns"),
        (b"image,question\np/1.png,What?\n", "the answer is missing: call its column answer, label"),
        (b"width,height\n4,4\n", "must name the columns"),
        (b"image,question,answer,answer\n", "there twice"),
        (b"image,question,answer\n", "no examples"),
        (b"image,answer\np/1.png,red\n", "there is no question"),
        (b"image,question,answer\np/1.png,What?," + b"x" * 200_000, "131072 characters"),
        (b"image,question,answer\np/1.png,What?,a\rb\n", "outside of quotation marks"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, words: str) -> None:
    report = report_of(tmp_path, zip_of({"list.csv": content, **PICTURES}))
    assert len(report.faults) == 1
    assert words in report.faults[0].reason


def test_a_column_that_is_missing_is_one_fault_beside_those_of_rows(tmp_path: Path) -> None:
    rows = "".join(f"p/1.png,red {n}\n" for n in range(300))
    table = f"image,answer\n{rows}p/none.png,red\np/1.png,\n".encode()
    report = report_of(tmp_path, zip_of({"list.csv": table, **PICTURES}))
    assert report.truncated_faults == 0
    shared, *others = report.faults
    assert (shared.line, shared.field, shared.file) == (None, "question", "list.csv")
    assert shared.reason.startswith("in 302 rows there is no question; write one in each record, or")
    assert [fault.line for fault in others] == [302]


def test_a_table_alone_is_told_by_its_content(tmp_path: Path) -> None:
    report = report_of(tmp_path, b"question;answer\nWhat?;this\nWhy?;that\n")
    assert (report.ok, report.format, report.examples) == (True, "examples (table)", 2)
    report = report_of(tmp_path, (HEADER + "a.png,What?,red\n").encode())
    assert "send a zip" in report.faults[0].reason


def test_a_table_alone_that_lacks_the_answer_is_told_so(tmp_path: Path) -> None:
    (fault,) = report_of(tmp_path, b"image;question;width\na.png;What?;4\n").faults
    names = "answer, label, caption, response, output, text, class, class_name or target"
    assert fault.reason == (f"the answer is missing: call its column {names} (found: image, question, width)")


def test_a_table_that_is_not_the_data_is_let_be(tmp_path: Path) -> None:
    files = {"d.jsonl": lines([row("p/1.png"), row("p/2.png", answer="blue")]), **PICTURES}
    report = report_of(tmp_path, zip_of({**files, "sizes.csv": b"width,height\n4,4\n"}))
    assert (report.ok, report.examples) == (True, 2)
    assert "1 file of the archive is not used" in report.warnings[0].reason


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    text = "image,question,answer,label,width\np/1.png,What?,red,7,4\np/2.png,What?,blue,8,4\n"
    report = report_of(tmp_path, zip_of({"list.csv": text.encode(), **PICTURES}))
    about_columns = [warning.reason for warning in report.warnings if warning.field != "split"]
    assert about_columns == ["columns that are not read: label, width"]


def test_a_huge_row_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    with path.open("wb") as out:
        out.write(b"question,answer\nWhat?,")
        for _ in range(200):
            out.write(b"a" * 1_000_000)
        out.write(b"\nWhat?,\n")
    tracemalloc.start()
    _, source, report = read_upload(path, limits=Limits(max_record_bytes=4_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()
    assert [fault.line for fault in report.faults] == [2, 3]
    assert "longer than 4000000" in report.faults[0].reason
    assert peak < 60_000_000


def test_a_hundred_thousand_open_quotation_marks_take_little_time(tmp_path: Path) -> None:
    started = time.perf_counter()
    report = report_of(tmp_path, b"question,answer\n" + b'a,"b\n' * 100_000)
    assert len(report.faults) + report.truncated_faults == 100_000
    report = report_of(tmp_path, b"question,answer\n" + (b'a,"b\n' + b'""\n' * 120) * 800)
    assert "not closed" in report.faults[0].reason
    assert time.perf_counter() - started < 20


CLASSES = {"birds/robin/1.png": png("red"), "birds/wren/2.png": png("blue")}


def test_folders_are_answers(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(zip_of(CLASSES))
    assert "--question" in read_upload(path)[2].faults[0].reason
    from adapter_store.datasets.records import Context

    examples, source, report = read_upload(path, context=Context(question="Which bird?"))
    source.close()
    assert [example.turns for example in examples] == [
        (Turn("Which bird?", "robin"),),
        (Turn("Which bird?", "wren"),),
    ]
    assert (report.ok, report.format, report.split.given) == (True, "folders (zip)", False)


def test_the_faults_of_folders_name_their_file(tmp_path: Path) -> None:
    from adapter_store.datasets.records import Context

    files = {**CLASSES, "0.png": png(), "birds/wren/3.png": b"no picture", "birds/wren/4.png": png()[:50]}
    path = tmp_path / "upload"
    path.write_bytes(zip_of(files))
    _, source, report = read_upload(path, context=Context(question="Which bird?"))
    source.close()
    found = {fault.file: fault.reason for fault in report.faults}
    assert set(found) == {"0.png", "birds/wren/3.png", "birds/wren/4.png"}
    assert "no folder of its own answer" in found["0.png"]
    assert "not a JPEG" in found["birds/wren/3.png"]


def test_a_folder_on_disk_is_read_where_it_lies(tmp_path: Path) -> None:
    for name, data in {**PICTURES, "list.csv": DIALECTS["comma"]}.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(data)
    (tmp_path / "data" / "link.png").symlink_to("/etc/passwd")
    (tmp_path / "data" / "more.zip").write_bytes(zip_of({}))
    _, source, report = read_upload(tmp_path / "data")
    source.close()
    assert [fault.file for fault in report.faults] == ["link.png", "more.zip"]
    assert (report.examples, report.images) == (2, 2)
    assert sorted(path.name for path in (tmp_path / "data").rglob("*.png")) == ["1.png", "2.png", "link.png"]
    assert str(tmp_path) not in json.dumps(report.to_dict())


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_an_archive_inside_a_tar_is_a_fault(tmp_path: Path, kind: str) -> None:
    inner = tar_of((tarfile.TarInfo("x"), b"x"), mode="w" if kind == "tar" else "w:gz")
    report = report_of(
        tmp_path, tar_of((tarfile.TarInfo("d.jsonl"), lines([row()])), (tarfile.TarInfo("in"), inner))
    )
    assert [fault.file for fault in report.faults] == ["in"]
    assert "inside the archive" in report.faults[0].reason


def test_a_broken_central_directory_of_a_table_zip_is_one_fault(tmp_path: Path) -> None:
    content = zip_of({"list.csv": DIALECTS["comma"], **PICTURES})
    report = report_of(tmp_path, io.BytesIO(content).getvalue()[:-30])
    assert len(report.faults) == 1


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_question_is_asked_with_the_one_for_all(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "upload"
    path.write_text(f"question,answer\n{blank},red\nWhich shape?,round\n")
    store = DatasetStore(tmp_path / "data")
    alone = store.validate(path)
    assert "give one for all of them" in alone.faults[-1].reason
    examples = store.open(store.put(path, filename="a.csv", question="Which color?").id).examples
    assert [example.turns[0].question for example in examples] == ["Which color?", "Which shape?"]
