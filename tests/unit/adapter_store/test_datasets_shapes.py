"""Shapes that published data sets and tools really have, beside the four main layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapter_store.datasets import Example, Report, Turn, read_upload
from adapter_store.datasets.records import Context
from tests.unit.adapter_store.uploads import lines, png, zip_of

PICTURES = {"images/1.png": png("red"), "images/2.png": png("blue")}


def read(tmp_path: Path, content: bytes, question: str | None = None) -> tuple[list[Example], Report]:
    path = tmp_path / "upload"
    path.write_bytes(content)
    examples, source, report = read_upload(path, context=Context(question=question))
    source.close()
    return examples, report


def one(tmp_path: Path, record: dict[str, Any], question: str | None = None) -> tuple[Example, Report]:
    content = zip_of({"data.json": json.dumps([record]).encode(), **PICTURES})
    examples, report = read(tmp_path, content, question)
    assert report.faults == ()
    return examples[0], report


def test_llama_factory_instructions_with_input_and_history(tmp_path: Path) -> None:
    record = {
        "instruction": "What bird is it?",
        "input": "Answer in one word.",
        "output": "robin",
        "system": "You know birds.",
        "history": [["<image>Is it a bird?", "yes"]],
        "images": ["images/1.png"],
    }
    example, report = one(tmp_path, record)
    assert example.turns == (
        Turn("Is it a bird?", "yes"),
        Turn("What bird is it?\nAnswer in one word.", "robin"),
    )
    assert example.image is not None
    assert ["system text" in warning.reason for warning in report.warnings] == [False, False, True]


def test_pairs_of_the_cauldron(tmp_path: Path) -> None:
    pairs = [
        {"user": "What bird?", "assistant": "robin", "source": "birds"},
        {"user": "Is it red?", "assistant": "yes", "source": "birds"},
    ]
    example, _ = one(tmp_path, {"texts": pairs, "images": ["images/1.png"]})
    assert example.turns == (Turn("What bird?", "robin"), Turn("Is it red?", "yes"))
    for broken in ([], [{"user": "What?"}], "text", [5]):
        content = lines([{"texts": broken, "images": None}])
        assert [fault.field.partition("[")[0] for fault in read(tmp_path, content)[1].faults] == ["texts"]


def test_metadata_of_hugging_face_image_folders(tmp_path: Path) -> None:
    for row in ({"file_name": "images/1.png", "text": "a robin"}, {"file_name": "images/1.png", "label": 7}):
        example, _ = one(tmp_path, row, question="Describe it.")
        assert example.turns == (Turn("Describe it.", str(row.get("text", 7))),)
        assert example.image is not None
    _, report = read(
        tmp_path, zip_of({"metadata.jsonl": lines([{"file_name": "images/1.png", "text": "x"}])})
    )
    assert "there is no question" in report.faults[0].reason


def test_fields_of_a_conversation_that_mean_something_else_are_let_be(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    example, report = one(tmp_path, {"conversations": talk, "path": "a/b.txt", "text": "x", "label": 3})
    assert (example.image, report.format) == (None, "llava (zip)")


def test_openai_with_developer_weight_and_a_path(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "developer", "content": "Be short."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "images/1.png", "detail": "low"}},
                    {"type": "text", "text": "What bird?"},
                ],
            },
            {"role": "assistant", "content": "robin", "weight": 1},
        ],
        "parallel_tool_calls": False,
    }
    example, report = one(tmp_path, record)
    assert example.turns == (Turn("What bird?", "robin"),)
    assert report.format == "openai (zip)"


@pytest.mark.parametrize("question", [None, "Which color?"])
def test_class_labels_of_hugging_face_parquet(tmp_path: Path, question: str | None) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": png(c), "path": None}, "label": n} for n, c in enumerate(("red", "blue"))]
    table = arrow.Table.from_pylist(rows)
    features = {"image": {"_type": "Image"}, "label": {"names": ["red", "blue"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parts = {"data/train-00000-of-00001.parquet": 0, "data/test-00000-of-00001.parquet": 1}
    files = {}
    for name, at in parts.items():
        parquet.write_table(table.slice(at, 1).replace_schema_metadata(about), tmp_path / "one")
        files[name] = (tmp_path / "one").read_bytes()
    examples, report = read(tmp_path, zip_of(files), question)
    if question is None:
        assert {fault.field for fault in report.faults} == {"question"}
        return
    assert report.faults == ()
    found = [(example.turns[0].answer, example.split) for example in examples]
    assert sorted(found, key=str) == [("blue", "test"), ("red", "train")]


def test_a_table_inside_gzip_alone(tmp_path: Path) -> None:
    import gzip

    _, report = read(tmp_path, gzip.compress(b"question\tanswer\nWhat?\tthis\nWhy?\tthat\n"))
    assert (report.faults, report.examples) == ((), 2)
