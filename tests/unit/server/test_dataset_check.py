"""``strata dataset check``: the report in words and as JSON, its exit status, no server and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from server.cli import dataset
from server.cli.main import main
from server.cli.teach import as_file
from tests.unit.adapter_store.uploads import lines, png, row, url, zip_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


def data(tmp_path: Path, *rows: dict) -> Path:
    path = tmp_path / "birds.jsonl"
    path.write_bytes(lines(list(rows)))
    return path


GOOD = (row(url(png()), answer="robin"), row(url(png("blue")), answer="wren [red]", split="test"))


def test_good_data_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert main(["dataset", "check", str(data(tmp_path, *GOOD)), "--task", "birds"]) == 0
    out = capsys.readouterr().out
    for words in (
        "examples   2",
        "wren [red] 1",
        "1 example, 1 picture, as the data says",
        "can be taught",
    ):
        assert words in out
    assert not home.exists()


def test_the_warning_of_luck_goes_by_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(url(png(f"#{n:02x}0000")), answer=("yes", "no")[n % 2]) for n in range(9)]
    path = str(data(tmp_path, *rows))
    assert main(["dataset", "check", path]) == 0
    assert "hold it back by luck" in capsys.readouterr().out
    monkeypatch.setenv("STRATA_MAX_CHANCE", "1")
    assert main(["dataset", "check", path]) == 0
    assert "by luck" not in capsys.readouterr().out
    monkeypatch.delenv("STRATA_MAX_CHANCE")
    monkeypatch.setenv("STRATA_HOLDOUT_RATIO", "0")
    assert main(["dataset", "check", path]) == 0
    assert "no picture is held out of a new task" in capsys.readouterr().out


def test_faults_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path, row(answer=""), row("\x1b[31m.png"), *([row(question="")] * 300))
    assert main(["dataset", "check", str(path)]) == 2
    out = capsys.readouterr().out
    assert "line 1, answer: the answer is empty" in out
    assert "and 102 more" in out
    assert "\x1b[31m" not in out
    assert main(["dataset", "check", str(path), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["truncated_faults"], len(report["faults"])) == (False, 102, 200)


def test_both_forms_of_the_report_name_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mute.csv"
    path.write_text("image,answer\na.png,red\n")
    assert main(["dataset", "check", str(path), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    first = report["faults"][0]
    assert first["field"] == "question"
    assert first["reason"].endswith("or give one for all of them with --question")
    assert first["reason"] in report["summary"]
    assert main(["dataset", "check", str(path)]) == 2
    assert first["reason"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.zip"], "cannot read none.zip"),
        (["none.zip", "--task", "BAD NAME"], "task"),
    ],
)
def test_what_cannot_be_checked_is_a_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", "check", *words]) == 2
    assert message in capsys.readouterr().err


def test_overlap_comes_from_the_home(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from adapter_store.images import decode_image, image_digest

    folder = home / "heldout" / "strata" / "colors"
    folder.mkdir(parents=True)
    held = {"held_out": [image_digest(decode_image(png()))], "trained": []}
    (folder / "split.json").write_text(json.dumps(held))
    assert main(["dataset", "check", str(data(tmp_path, *GOOD)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overlap"] == [{"task": "colors", "images": 1}]


def test_a_bar_appears_only_when_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "birds.zip"
    path.write_bytes(zip_of({"robin/1.png": png(), "wren/2.png": png("blue")}))
    command = ["dataset", "check", str(path), "--question", "Which bird?"]
    assert main(command) == 0
    assert "checking pictures" not in capsys.readouterr().err
    monkeypatch.setattr(dataset, "PATIENCE_SECONDS", 0.0)
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert shown.index("unpacking") < shown.index("reading") < shown.index("checking pictures")


def test_it_answers_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from server.cli.main import main; status = main(sys.argv[1:]); "
        "sys.exit(status or ('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", program, "dataset", "check", str(data(tmp_path, *GOOD))]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_folder_with_files_from_1970_can_be_packed(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    old = tmp_path / "birds/a.json"
    old.write_text("[]")
    os.utime(old, (0, 0))
    with as_file(tmp_path / "birds") as packed, zipfile.ZipFile(packed) as archive:
        assert archive.read("a.json") == b"[]"
