"""Every layout that people have gives the same examples."""

from __future__ import annotations

import base64
import io
import json
import sys
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapter_store.datasets import Example, Report, Turn, read_upload
from adapter_store.images import decode_image
from tests.contract.pictures import data_url


def picture(color: str, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(out, format=kind)
    return out.getvalue()


RED, BLUE = picture("red"), picture("blue", "JPEG")
WANTED = [(Turn("What color?", "red"),), (Turn("What color?", "blue"),)]


def said(question: str, answer: str, keys: tuple[str, str], names: tuple[str, str]) -> list[dict[str, Any]]:
    return [{keys[0]: names[0], keys[1]: question}, {keys[0]: names[1], keys[1]: answer}]


def llava(first: str = "images/red.png", second: str = "images/blue.jpg") -> list[dict[str, Any]]:
    pairs = ((first, "red"), (second, "blue"))
    return [
        {
            "id": f"n{i}",
            "image": image,
            "conversations": said("<image>\nWhat color?", answer, ("from", "value"), ("human", "gpt")),
        }
        for i, (image, answer) in enumerate(pairs)
    ]


def sharegpt() -> list[dict[str, Any]]:
    pairs = (("red.png", "red"), ("blue.jpg", "blue"))
    return [
        {
            "messages": said("<image>What color?", answer, ("role", "content"), ("user", "assistant")),
            "images": [image],
        }
        for image, answer in pairs
    ]


def openai() -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What color?"},
                        {"type": "image_url", "image_url": {"url": data_url(data), "detail": "low"}},
                    ],
                },
                {"role": "assistant", "content": answer},
            ]
        }
        for data, answer in ((RED, "red"), (BLUE, "blue"))
    ]


def plain() -> list[dict[str, Any]]:
    return [
        {"image": data_url(RED), "question": "What color?", "answer": "red"},
        {"image": base64.b64encode(BLUE).decode(), "question": "What color?", "answer": "blue"},
    ]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(tmp_path: Path, content: bytes) -> tuple[list[Example], list[bytes], Report]:
    path = tmp_path / "upload.bin"
    path.write_bytes(content)
    examples, source, report = read_upload(path)
    with closing(source):
        pictures = [
            source.check(example.image).place.read() for example in examples if example.image is not None
        ]
    return examples, pictures, report


PICTURES = {"images/red.png": RED, "images/blue.jpg": BLUE}
UPLOADS = {
    "llava zip": (zipped({"data.json": json.dumps(llava()).encode(), **PICTURES}), "llava"),
    "llava zip in a folder": (
        zipped(
            {
                "set/train.json": json.dumps(llava("red.png", "blue.jpg"), indent=2).encode(),
                **{f"set/{name}": data for name, data in PICTURES.items()},
                "__MACOSX/set/._train.json": b"\x00\x05",
            }
        ),
        "llava",
    ),
    "llava tar.gz, pictures last": (tarred({"d.jsonl": jsonl(llava()), **PICTURES}, "w:gz"), "llava"),
    "llava tar, pictures first": (tarred({**PICTURES, "./d.jsonl": jsonl(llava())}, "w"), "llava"),
    "llava alone": (json.dumps(llava(data_url(RED), data_url(BLUE))).encode(), "llava"),
    "sharegpt zip": (zipped({"data.json": json.dumps(sharegpt()).encode(), **PICTURES}), "sharegpt"),
    "openai jsonl": (jsonl(openai()), "openai"),
    "openai with BOM": (b"\xef\xbb\xbf" + jsonl(openai()), "openai"),
    "openai in UTF-16": (jsonl(openai()).decode().encode("utf-16"), "openai"),
    "openai with CRLF and blank lines": (jsonl(openai()).replace(b"\n", b"\r\n\r\n"), "openai"),
    "plain": (json.dumps({"task": "colors", "examples": plain()}).encode(), "examples"),
    "plain, indented": (json.dumps({"examples": plain()}, indent=4).encode(), "examples"),
    "plain list": (json.dumps(plain()).encode(), "examples"),
    "one object after the other, indented": (
        "\n".join(json.dumps(row, indent=1) for row in plain()).encode(),
        "examples",
    ),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_every_layout_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    content, layout = UPLOADS[name]
    examples, pictures, report = read(tmp_path, content)
    assert report.faults == ()
    assert report.format.split()[0] == layout
    assert [example.turns for example in examples] == WANTED
    assert [decode_image(data).getpixel((2, 2)) for data in pictures] == [(255, 0, 0), (0, 0, 254)]
    assert (report.examples, report.images, report.answers) == (2, 2, 2)
    assert sorted(report.answer_histogram) == [("blue", 1), ("red", 1)]


def test_ids_are_kept_or_made(tmp_path: Path) -> None:
    examples, _, _ = read(tmp_path, UPLOADS["llava zip"][0])
    assert [example.id for example in examples] == ["n0", "n1"]
    examples, _, _ = read(tmp_path, UPLOADS["plain"][0])
    assert [example.id for example in examples] == ["e000001", "e000002"]


def test_several_turns_and_text_alone_are_kept(tmp_path: Path) -> None:
    row = llava()[0]
    row["conversations"] += said("And the shape?", "square", ("from", "value"), ("human", "gpt"))
    words = {"conversations": said("Hi", "Hello", ("from", "value"), ("human", "gpt"))}
    examples, _, report = read(tmp_path, zipped({"d.json": json.dumps([row, words]).encode(), **PICTURES}))
    assert report.faults == ()
    assert examples[0].turns == (Turn("What color?", "red"), Turn("And the shape?", "square"))
    assert examples[1].image is None
    assert [warning.reason for warning in report.warnings if warning.field == "file"] == [
        "1 file of the archive is not used by any example"
    ]


@pytest.mark.parametrize("parts", [False, True])
def test_parquet_of_hugging_face(tmp_path: Path, parts: bool) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for data, answer in ((RED, "red"), (BLUE, "blue")):
        question: Any = "<image>\nWhat color?"
        reply: Any = answer
        if parts:
            question = [{"type": "image", "text": None}, {"type": "text", "text": "What color?"}]
            reply = [{"type": "text", "text": answer}]
        messages = said(question, reply, ("role", "content"), ("user", "assistant"))
        rows.append({"messages": messages, "images": [{"bytes": data, "path": "x.png"}], "extra": 1})
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "upload.bin")
    examples, source, report = read_upload(tmp_path / "upload.bin")
    with closing(source):
        assert report.faults == ()
        assert [example.turns for example in examples] == WANTED
        assert report.format == "sharegpt (parquet)"


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    _, _, report = read(tmp_path, b"PAR1" + bytes(100) + b"PAR1")
    assert "pyarrow" in report.faults[0].reason


def test_damaged_parquet_is_one_fault(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    _, _, report = read(tmp_path, b"PAR1" + bytes(100) + b"PAR1")
    assert "damaged" in report.faults[0].reason


def table_bytes(columns: dict[str, list[str]], rows: int = 1) -> bytes:
    arrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    parquet.write_table(arrow.table({name: values * rows for name, values in columns.items()}), out)
    return out.getvalue()


def test_half_of_a_parquet_file_is_cut_off_whatever_its_last_bytes_say(tmp_path: Path) -> None:
    whole = table_bytes({"question": ["What?"], "answer": ["red"]}, 100)
    _, _, report = read(tmp_path, whole[: len(whole) // 2] + b"\xff" * 8)
    assert [fault.reason for fault in report.faults] == ["the parquet file is damaged or cut off"]


def test_parquet_of_no_known_column_is_told_all_that_are(tmp_path: Path) -> None:
    (fault,) = read(tmp_path, table_bytes({"width": ["4"], "height": ["4"]}))[2].faults
    assert fault.reason == (
        "no known column (found: width, height); needed are "
        "a picture (image, file_name, filename, image_path), "
        "a question (question, query, prompt, instruction) and an answer (answer, label, caption, response), "
        "or images beside messages, conversations or texts"
    )


def test_parquet_without_answers_is_one_fault(tmp_path: Path) -> None:
    (fault,) = read(tmp_path, table_bytes({"image": ["a.png"], "question": ["What?"]}, 30))[2].faults
    assert fault.reason.startswith("the answer is missing: call its column answer, label, caption")


def test_accents_in_names_match_in_either_form(tmp_path: Path) -> None:
    rows = llava("caf\u00e9.png", "images/blue.jpg")
    files = {"d.json": json.dumps(rows).encode(), "cafe\u0301.png": RED, "images/blue.jpg": BLUE}
    assert read(tmp_path, zipped(files))[2].faults == ()
