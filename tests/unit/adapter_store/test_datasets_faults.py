"""Broken and hostile uploads: every fault at once, bounded time and memory, no path on this machine."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapter_store.datasets import Limits, read_upload
from tests.unit.adapter_store.uploads import lines, png, report_of, row, talk, tar_of, url, zip_of


def test_all_faults_of_one_file_come_together(tmp_path: Path) -> None:
    rows: list[Any] = [
        row(url(png())),
        '{"question": "What?", "answer": ',
        row(question="  "),
        row(answer=""),
        row(answer=None),
        row(question="x" * 9000),
        row("http://169.254.169.254/latest/meta-data"),
        row("file:///etc/passwd"),
        row("../../etc/passwd"),
        row("a\x00b.png"),
        row("missing.png"),
        row(url(b"hello")),
        row(url(png()[:40])),
        row(id="a"),
        row(id="a"),
        [1, 2],
        {"foo": 1},
        row(question="a \ud800 b"),
        row(question="nul \x00"),
        row(answer={"a": 1}),
        row(url(png()), question="<image><image> two"),
        row(question="<image> none"),
        row(answer="<image>"),
        row(answer=7),
    ]
    report = report_of(tmp_path, lines(rows))
    faulty = {fault.line for fault in report.faults}
    assert faulty == set(range(2, 24)) - {14}
    by_line = {fault.line: fault for fault in report.faults}
    assert "not valid JSON at column" in by_line[2].reason
    empty = "the question is empty; write one in each record, or give one for all of them with the file"
    assert (by_line[3].field, by_line[3].reason) == ("question", empty)
    assert "8000" in by_line[6].reason
    assert "never fetched" in by_line[7].reason
    assert "never fetched" in by_line[8].reason
    assert '".."' in by_line[9].reason
    assert "NUL" in by_line[10].reason
    assert "line 14" in by_line[15].reason
    assert "2 <image> marks but 1 pictures" in by_line[21].reason
    assert report.summary().startswith(f"the data set has {len(report.faults)} faults: line 2")


@pytest.mark.parametrize(
    ("record", "field", "words"),
    [
        (talk("What?", image="a.png"), "conversations[0].value", "0 <image> marks but 1 pictures"),
        (talk("<image> What?"), "conversations[0].value", "1 <image> marks but 0 pictures"),
        (talk("<image> What?", image=["a.png", "b.png"]), "image[1]", "split it"),
        ({"conversations": []}, "conversations", "not empty"),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "conversations[0].value", "no answer"),
        (
            {"conversations": [{"from": "gpt", "value": "Hi"}]},
            "conversations[0].value",
            "a question must come",
        ),
        ({"conversations": [{"from": "tool", "value": "Hi"}]}, "conversations[0].from", "unknown speaker"),
        ({"conversations": ["Hi"]}, "conversations[0]", "must be an object"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0]", "audio"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({**talk("Hi"), "videos": ["a.mp4"]}, "videos", "only pictures"),
        ({**talk("Hi"), "id": {"a": 1}}, "id", "printable"),
        ({**talk("Hi"), "id": "a\x1b[31m"}, "id", "printable"),
    ],
)
def test_faults_of_a_record_name_their_field(tmp_path: Path, record: Any, field: str, words: str) -> None:
    report = report_of(tmp_path, zip_of({"d.jsonl": lines([record]), "a.png": png(), "b.png": png()}))
    assert [(fault.line, fault.field, fault.file) for fault in report.faults] == [(1, field, "d.jsonl")]
    assert words in report.faults[0].reason


def test_mixed_layouts_are_a_fault_within_a_file_and_across_files(tmp_path: Path) -> None:
    assert "one layout" in report_of(tmp_path, lines([talk("Hi"), row()])).faults[0].reason
    report = report_of(tmp_path, zip_of({"a.json": lines([talk("Hi")]), "b.json": lines([row()])}))
    assert [(fault.file, fault.line) for fault in report.faults] == [("b.json", 1)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"  \n \n", "not a data set"),
        (b"[]", "no examples"),
        (b'{"examples": []}', "no examples"),
        (b"hello", "not a data set"),
        (png(), "a picture alone"),
        (b"\x80\x04\x95pickle", "not a data set"),
        (b"BZh91AY&SY", "bzip2 archives are not read"),
        (b"Rar!\x1a\x07", "rar archives are not read"),
        (b"PK\x03\x04 nothing", "cut off"),
        (b"\x1f\x8b\x08\x00nothing here", "damaged"),
        (zip_of({"readme.txt": b"hello"}), "no data file"),
        (zip_of({}), "no data file"),
        (gzip.compress(zip_of({"d.json": b"[]"})), "inside gzip"),
        (b'[{"question": "a", "answer": "b"}', "ends inside the array"),
        (b'[{"question": "a", "answer": "b"} 5]', "comma"),
        (b'[{"question": "a", "answer": }]', "not valid JSON"),
        (b"[" * 100_000, "nested"),
        (b'{"a": ' * 100_000, "nested"),
        (b'[{"question": "a", "answer": ' + b"9" * 5000 + b"}]", "number"),
        (b'[{"question": "\xff\xfe", "answer": "b"}]', "UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_files_that_are_no_data_set_say_why(tmp_path: Path, content: bytes, words: str) -> None:
    report = report_of(tmp_path, content)
    assert len(report.faults) == 1
    assert words in report.faults[0].reason


def test_a_bad_byte_spoils_its_line_only(tmp_path: Path) -> None:
    good = lines([row(answer="caf\u00e9")])
    report = report_of(tmp_path, good + b'{"question": "\xe9", "answer": "x"}\n' + good)
    assert [fault.line for fault in report.faults] == [2]
    assert report.examples == 2


def test_line_numbers_of_an_indented_array_are_true(tmp_path: Path) -> None:
    text = json.dumps([row(), row(question=""), row(answer="")], indent=2)
    starts = [number for number, line in enumerate(text.split("\n"), 1) if line == "  {"]
    report = report_of(tmp_path, text.encode())
    assert [(f.line, f.field) for f in report.faults] == [
        (starts[1], "[1].question"),
        (starts[2], "[2].answer"),
    ]


def test_the_fault_list_is_capped_and_says_how_many_more(tmp_path: Path) -> None:
    report = report_of(tmp_path, lines([row(answer="")] * 1000))
    assert (len(report.faults), report.truncated_faults) == (200, 800)
    assert "1,000 faults" in report.summary()


def test_a_picture_over_the_limit_in_a_late_row_comes_with_the_early_faults(tmp_path: Path) -> None:
    rows = [row(url(png()), id=str(i), answer=str(i % 7)) for i in range(9_998)]
    rows[3]["answer"] = ""
    rows.append(row(url(png(size=(300, 300)))))
    report = report_of(tmp_path, lines(rows), Limits(max_image_pixels=10_000))
    assert [fault.line for fault in report.faults] == [4, 9_999]
    assert "300x300" in report.faults[1].reason


def test_all_answers_equal_and_repeats_are_warnings(tmp_path: Path) -> None:
    report = report_of(tmp_path, lines([row(url(png())), row(url(png())), row(url(png("blue")))]))
    assert report.ok
    assert report.duplicates == 1
    assert any("all answers are" in warning.reason for warning in report.warnings)
    report = report_of(tmp_path, lines([row(url(png())), row(url(png()), answer="blue")]))
    assert any("otherwise" in warning.reason for warning in report.warnings)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_upload_bytes=100), "at most 100 are accepted"),
        (Limits(max_examples=2), "more than 2 examples"),
        (Limits(max_record_bytes=50), "longer than 50 bytes"),
        (Limits(max_image_bytes=30), "at most 30 are accepted"),
    ],
)
def test_limits_hold(tmp_path: Path, limits: Limits, words: str) -> None:
    report = report_of(tmp_path, lines([row(url(png()), id=str(i)) for i in range(3)]), limits)
    assert words in report.faults[0].reason


@pytest.mark.parametrize("start", [b'{"question": "', b'[{"question": "', b'{"examples": [{"question": "'])
def test_a_huge_line_is_not_read_whole(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "upload"
    with path.open("wb") as out:
        out.write(start)
        for _ in range(200):
            out.write(b"a" * 1_000_000)
    limits = Limits(max_record_bytes=4_000_000)
    tracemalloc.start()
    _, source, report = read_upload(path, limits=limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()
    assert "longer than" in report.faults[0].reason
    assert peak < 60_000_000


def test_millions_of_tiny_values_in_one_record_are_refused(tmp_path: Path) -> None:
    content = b'[{"question": "a", "answer": "b", "more": [' + b"0," * 2_000_000 + b"0]}]"
    assert "too many values" in report_of(tmp_path, content).faults[0].reason


EVIL = ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png", "a\nb.png"]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_point_outside_are_faults(tmp_path: Path, name: str, kind: str) -> None:
    data = lines([row()])
    if kind == "zip":
        content = zip_of({"d.jsonl": data, name: png()})
    else:
        content = tar_of((tarfile.TarInfo("d.jsonl"), data), (tarfile.TarInfo(name), png()))
    report = report_of(tmp_path, content)
    assert [fault.field for fault in report.faults] == ["name"]
    assert (report.faults[0].file or "").isprintable()


def test_a_nul_in_a_zip_name_is_a_fault(tmp_path: Path) -> None:
    content = zip_of({"d.jsonl": lines([row()]), "abcXdef.png": png()}).replace(b"abcXdef", b"abc\0def")
    assert "NUL" in report_of(tmp_path, content).faults[0].reason


def test_links_and_devices_are_faults(tmp_path: Path) -> None:
    infos: list[tuple[tarfile.TarInfo, bytes]] = [(tarfile.TarInfo("d.jsonl"), lines([row("a.png")]))]
    for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE), ("c", tarfile.CHRTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        infos.append((info, b""))
    report = report_of(tmp_path, tar_of(*infos))
    assert [fault.file for fault in report.faults] == ["a.png", "b.png", "c", "d.jsonl"]
    link = zipfile.ZipInfo("a.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("d.jsonl", lines([row()]))
        archive.writestr(link, "/etc/passwd")
    assert "symbolic link" in report_of(tmp_path, out.getvalue()).faults[0].reason


def test_nested_archives_and_names_used_twice_are_faults(tmp_path: Path) -> None:
    inner = zip_of({"d.json": b"[]"})
    report = report_of(tmp_path, zip_of({"d.jsonl": lines([row()]), "more.zip": inner}))
    assert [fault.file for fault in report.faults] == ["more.zip"]
    twice = tar_of(*[(tarfile.TarInfo("d.jsonl"), lines([row()])) for _ in range(2)])
    assert "twice" in report_of(tmp_path, twice).faults[0].reason


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "gz"])
def test_a_small_archive_that_grows_is_stopped(tmp_path: Path, kind: str) -> None:
    zeros = bytes(30_000_000)
    content = {
        "zip": lambda: zip_of({"d.jsonl": zeros}),
        "tar.gz": lambda: tar_of((tarfile.TarInfo("d.jsonl"), zeros), mode="w:gz"),
        "gz": lambda: gzip.compress(zeros),
    }[kind]()
    assert len(content) < 100_000
    limits = Limits(free_expansion_bytes=1_000_000, max_members=100)
    report = report_of(tmp_path, content, limits)
    assert len(report.faults) == 1
    assert "unpacks to" in report.faults[0].reason
    assert "bytes" in report.faults[0].reason
    assert "STRATA_MAX_UPLOAD_BYTES" in report.faults[0].reason


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_millions_of_tiny_files_are_counted_before_they_are_read(tmp_path: Path, kind: str) -> None:
    files = {f"{number}": b"" for number in range(3_000)}
    if kind == "zip":
        content = zip_of(files)
    else:
        mode = "w" if kind == "tar" else "w:gz"
        content = tar_of(*[(tarfile.TarInfo(name), b"") for name in files], mode=mode)
    assert (
        "more than 1000 members" in report_of(tmp_path, content, Limits(max_members=1_000)).faults[0].reason
    )


def test_a_huge_extended_tar_header_is_not_held_in_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 200_000_000
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = packer.compress(info.tobuf())
    for _ in range(200):
        content += packer.compress(bytes(1_000_000))
    content += packer.flush()
    tracemalloc.start()
    report = report_of(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "extended header" in report.faults[0].reason
    assert peak < 20_000_000


def test_a_damaged_member_of_a_zip_is_one_fault(tmp_path: Path) -> None:
    picture = png(size=(50, 50))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.png", picture)
        archive.writestr("d.jsonl", lines([row("a.png")]))
    broken = out.getvalue().replace(picture, picture[:-20] + b"x" * 20, 1)
    report = report_of(tmp_path, broken)
    assert [fault.file for fault in report.faults] == ["a.png", "d.jsonl"]
    assert "damaged" in report.faults[0].reason


@pytest.mark.parametrize("cut", [30, 200, 600])
def test_cut_off_archives_are_faults(tmp_path: Path, cut: int) -> None:
    files = {"a.png": png(size=(60, 60)), "d.jsonl": lines([row("a.png")] * 20)}
    for content in (zip_of(files), tar_of(*[(tarfile.TarInfo(n), d) for n, d in files.items()], mode="w:gz")):
        report = report_of(tmp_path, content[: min(cut, len(content) - 20)])
        assert not report.ok


def test_a_lying_table_of_contents_is_a_fault(tmp_path: Path) -> None:
    content = bytearray(zip_of({"d.jsonl": lines([row()])}))
    struct.pack_into("<I", content, len(content) - 10, 0xFFFFFFF0)
    assert "table of contents" in report_of(tmp_path, bytes(content)).faults[0].reason


def test_ten_thousand_faulty_lines_take_little_time(tmp_path: Path) -> None:
    started = time.perf_counter()
    report = report_of(tmp_path, b"{broken\n" * 50_000, replace(Limits(), max_faults=5))
    assert (len(report.faults), report.truncated_faults) == (5, 49_995)
    assert time.perf_counter() - started < 10
