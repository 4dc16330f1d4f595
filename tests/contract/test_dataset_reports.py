"""The report over HTTP is that of ``strata dataset check``, and a question may come with a file."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter_store.images import decode_image, image_digest
from server.cli.main import main
from tests.contract.conftest import RunningGateway
from tests.contract.pictures import examples, llava_zip, png

COLORS = ("red", "green", "blue", "white")
OF_COMMAND = {
    r"(a form field \"question\", or --question)": "(--question TEXT)",
    "for all of them with the file": "for all of them with --question",
}
"""What the report over HTTP says of a question for all, and what the command says in its place."""


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


CLASSES = zipped({f"{color}/{n}.png": png(color, 20 + n) for color in COLORS for n in range(3)})
TABLE = zipped({"list.csv": b"file;label\na.png;red\n../b.png;blue\na.png;\n", "a.png": png("red")})
SPLIT = zipped(
    {f"{part}/{c}/1.png": png(c, size) for part, size in (("train", 9), ("val", 8)) for c in COLORS}
)


@pytest.fixture
def offline(running: RunningGateway, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line see the home and the base of the gateway, not its address."""
    monkeypatch.setenv("STRATA_HOME", str(running.home))
    monkeypatch.setenv("STRATA_BASE", str(tiny_base))
    held = running.home / "heldout" / "strata" / "reds"
    held.mkdir(parents=True, exist_ok=True)
    keys = [image_digest(decode_image(png("red", size))) for size in (20, 9)]
    (held / "split.json").write_text(json.dumps({"held_out": keys, "trained": []}))


@pytest.mark.parametrize("content", [llava_zip(5), CLASSES, TABLE, SPLIT, b"nothing", b""])
@pytest.mark.parametrize("beside", [{}, {"question": "Which color is it?", "task": "colors"}])
@pytest.mark.usefixtures("offline")
def test_both_reports_are_the_same(
    content: bytes,
    beside: dict[str, str],
    http: httpx.Client,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    flags = [word for name, value in beside.items() for word in (f"--{name}", value)]
    status = main(["dataset", "check", str(path), "--json", *flags])
    report = json.loads(capsys.readouterr().out)
    sent = http.post("/v1/datasets:validate", files={"file": ("d", content)}, data=beside)
    said = sent.text
    for of_http, typed in OF_COMMAND.items():
        said = said.replace(of_http, typed)
    assert json.loads(said) == report
    assert status == (0 if report["ok"] else 2)
    if content is CLASSES and beside:
        assert report["length_unit"] == "tokens"
        assert report["overlap"] == [{"task": "reds", "images": 1}]
        assert report["question_lengths"]["longest"] > 1


def test_class_folders_with_a_question_become_a_job(running: RunningGateway, http: httpx.Client) -> None:
    beside = {"question": "Which color?", "n_epochs": "2"}
    sent = http.post("/v1/tasks/hues/batches", files={"file": ("c.zip", CLASSES)}, data=beside)
    assert sent.status_code == 202, sent.text
    assert sent.json()["hyperparameters"]["n_epochs"] == 2
    dataset = running.gateway.datasets.open(sent.json()["dataset"]["id"])
    asked = {(turn.question, turn.answer) for example in dataset.examples for turn in example.turns}
    assert asked == {("Which color?", color) for color in COLORS}
    refused = http.post("/v1/tasks/hues/batches", files={"file": ("c.zip", CLASSES)})
    assert refused.status_code == 400
    assert refused.json()["error"]["report"]["faults"][0]["field"] == "question"
    kept = http.post("/v1/datasets", files={"file": ("c.zip", CLASSES)}, data={"question": "Which color?"})
    assert (kept.status_code, kept.json()["examples"]) == (201, 12)


def test_a_given_part_reaches_the_stored_data(running: RunningGateway, http: httpx.Client) -> None:
    data = {"question": "Which color?"}
    sent = http.post("/v1/tasks/hues/batches", files={"file": ("c.zip", SPLIT)}, data=data)
    assert sent.status_code == 202, sent.text
    dataset = running.gateway.datasets.open(sent.json()["dataset"]["id"])
    assert [example.split for example in dataset.examples] == ["train"] * 4 + ["test"] * 4


@pytest.mark.parametrize("task", ["BAD NAME", 5, ["x"]])
def test_a_task_that_cannot_be_one_is_refused(http: httpx.Client, task: Any) -> None:
    answer = http.post("/v1/datasets:validate", json={"examples": examples(1), "task": task})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "task"


@pytest.mark.parametrize("question", ["x" * 9000, "nul \0", "   "])
def test_a_question_that_cannot_be_one_is_a_fault(http: httpx.Client, question: str) -> None:
    data = {"question": question}
    report = http.post("/v1/datasets:validate", files={"file": ("c.zip", CLASSES)}, data=data).json()
    assert not report["ok"]
    assert {fault["field"] for fault in report["faults"]} == {"question"}
