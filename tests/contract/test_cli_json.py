"""Every verb of the command line with ``--json``: one JSON value on standard output, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.cli.completion import verbs_of
from server.cli.main import build_parser, main
from tests.contract.conftest import KEY, RunningGateway
from tests.contract.pictures import llava_zip
from tests.contract.publishing import PICTURE, QUESTION, Publisher

STARTING = {"up", "serve", "work", "demo"}
"""They write a JSON object for each event instead: tests/e2e reads those."""
LINES = {
    "chat": ["chat", "--image", "cat.png", "--max-tokens", "4", QUESTION],
    "explain": ["explain", "--image", "cat.png", QUESTION],
    "dataset": ["dataset", "check", "birds.zip"],
    "correct": ["correct", "--image", "cat.png", QUESTION, "a cat"],
    "canary": ["canary"],
    "shadow": ["shadow"],
    "versions": ["versions"],
    "promote": ["promote", "v1"],
    "matrix": ["matrix"],
    "submit": ["submit", "birds.zip", "--task", "birds"],
    "jobs": ["jobs"],
    "export": ["export", "--image", "cat.png", QUESTION, "--out", "lora"],
    "import": ["import", "lora", "--task", "more", "--examples", "birds.zip"],
    "rollback": ["rollback"],
    "base": ["base"],
    "completion": ["completion", "bash"],
}
KEYS: dict[str, set[str]] = {
    "chat": {"answer", "model", "version", "finish_reason", "usage"},
    "explain": {"version", "answered_by", "tasks", "increments"},
    "dataset": {"faults", "examples"},
    "correct": {"id", "status", "pending"},
    "canary": {"canary", "shadow", "versions"},
    "shadow": {"canary", "shadow", "versions"},
    "versions": {"data", "aliases"},
    "promote": {"alias", "version", "revision"},
    "matrix": {"tasks", "rows", "base"},
    "submit": {"id", "status", "task"},
    "export": {"folder", "task", "rank"},
    "import": {"id", "status", "task", "adapter"},
    "rollback": {"alias", "version", "revision"},
    "completion": {"shell", "script"},
}


@pytest.fixture(scope="module")
def place(running: RunningGateway, publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a picture and a data set; one version is published."""
    publisher.publish(publisher.state(1))
    folder = tmp_path_factory.mktemp("place")
    (folder / "cat.png").write_bytes(PICTURE)
    (folder / "birds.zip").write_bytes(llava_zip(6))
    return folder


def one_value(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    status = main(words)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return status, json.loads(out)


def test_no_verb_is_left_out():
    assert set(LINES) | STARTING == {verb.name for verb in verbs_of(build_parser())}


@pytest.mark.parametrize("verb", LINES)
def test_a_verb_writes_one_value(
    verb: str,
    running: RunningGateway,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(place)
    monkeypatch.setenv("STRATA_URL", running.url)
    monkeypatch.setenv("STRATA_API_KEY", KEY)
    status, value = one_value([*LINES[verb], "--json"], capsys)
    if verb == "base" and status:  # not assembled on this machine
        assert set(value) == {"error"}
        return
    assert status == 0, value
    if verb == "jobs":
        assert [job["task"] for job in value] == ["birds"]
    else:
        assert set(value) >= KEYS.get(verb, {"path", "digest"})


@pytest.mark.parametrize(
    "words",
    [
        ["chat", "--image", "none.png", "Hi?"],
        ["versions", "--name", "other"],
        ["promote", "v77"],
        ["submit", "none.zip", "--task", "birds"],
        ["jobs", "job-none"],
        ["export", "--out", "x"],
        ["import", "none", "--task", "more", "--examples", "birds.zip"],
        ["explain", "--model", "strata@v77", "Hi?"],
    ],
    ids=lambda words: words[0],
)
def test_an_error_is_one_value_too(
    words: list[str],
    running: RunningGateway,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(place)
    status, value = one_value([*words, "--json", "--url", running.url, "--api-key", KEY], capsys)
    assert status == 2
    assert set(value["error"]) == {"message", "code"}
