"""The forgetting benchmark on the tiny base: every kind of method, its record, and what is refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.forgetting.__main__ import main
from benchmarks.forgetting.records import read_records

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
METHODS = ("strata", "zero-shot", "sequential", "replay", "oracle", "joint")


def upload(path: Path, question: str, count: int, shade: int) -> None:
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            name = list(COLORS)[number % 3]
            red, green, blue = COLORS[name]
            buffer = io.BytesIO()
            Image.new("RGB", (28, 28), (red, green, (blue + shade + number) % 256)).save(buffer, format="PNG")
            archive.writestr(f"{number}.png", buffer.getvalue())
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": name}]
            rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
        archive.writestr("data.json", json.dumps(rows))


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    folder = tmp_path / "colors"
    questions = {"1-colors": "Which color?", "2-paint": "Please name the paint that covers this old canvas."}
    for task, question in questions.items():
        (folder / task).mkdir(parents=True)
        upload(folder / task / "train.zip", question, 24, 0)
        upload(folder / task / "test.zip", question, 6, 100)
    return folder


def test_every_kind_of_method_leaves_a_record_and_the_same_command_repeats_nothing(
    tiny_base: Path,
    stream: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    asked = [
        "--data",
        str(stream),
        "--base",
        str(tiny_base),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    asked += ["--method", *METHODS, "--seeds", "1"]
    assert main([*asked, "--epochs", "60"]) == 0
    folder = tmp_path / "out" / "data-colors-small"
    records = {record["method"]: record for record in read_records(folder)}
    assert set(records) == set(METHODS)
    for name in ("strata", "sequential", "replay", "joint"):
        assert [set(row) for row in records[name]["rows"]] == [{"colors", "paint"}] * 2
    assert set(records["strata"]["leak"]) == {"colors", "paint"}
    assert records["zero-shot"]["rows"] == []
    sizes = {records[name]["trained_parameters"] for name in ("strata", "sequential", "oracle", "joint")}
    assert len(sizes) == 1
    assert {record["beside"] for record in records.values()} == {0}
    assert "| strata |" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["plots", "report.json", "report.md", "runs"]

    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    assert main([*asked, "--epochs", "60", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == len(METHODS)
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()} == before

    assert main([*asked, "--epochs", "3"]) == 2
    assert "was made with epochs 60" in " ".join(capsys.readouterr().err.split())
    (folder / "runs" / "joint-0.json").write_text(json.dumps({"method": "joint", "seed": 0}))
    assert main([*asked, "--epochs", "60"]) == 2
    assert "another build" in " ".join(capsys.readouterr().err.split())
