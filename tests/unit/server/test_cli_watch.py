"""A followed job outlives the restart of its gateway, and what nobody answers for has a status of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.cli import correct, watch
from server.cli.client import Client
from server.cli.main import EXIT_LOST_SIGHT, build_parser, main
from tests.contract.pictures import png
from tests.scripted_http import Asked, Reply, ScriptedServer, reply

JOB = {"id": "job-1", "task": "digits", "status": "running"}
DONE = {**JOB, "status": "succeeded", "outcome": "learned", "result_version": "v2"}
KEPT = {
    "id": "fb-1",
    "task": "digits",
    "status": "pending",
    "job": None,
    "pending": {"count": 1, "oldest_seconds": 0.0, "sent_at_count": 8, "sent_after_seconds": 20.0},
}
SENT = {**KEPT, "status": "running", "job": "job-1"}
GONE = {"error": {"message": "no correction", "code": "not_found"}}
AWAY = {"error": {"message": "the job queue cannot be used now", "code": "queue_unavailable"}}


class Gateway(ScriptedServer):
    """Answer about one job from a script: a status and a body each; None hangs up without a word."""

    def __init__(self, port: int, script: list[tuple[int, dict] | None], stream: bytes | None = None) -> None:
        self.script = script
        self.stream = stream
        self.paths: list[str] = []
        super().__init__(self._told, port)

    def _told(self, asked: Asked) -> Reply | None:
        if asked.path.endswith("/events"):
            if self.stream is not None and "event-stream" in asked.headers["Accept"]:
                return Reply(200, "text/event-stream", self.stream)
            return reply(200, {"data": [], "has_more": False})
        if asked.method == "POST":
            queued = reply(202, {**JOB, "status": "queued"})
            return reply(200, KEPT) if asked.path == "/v1/feedback" else queued
        self.paths.append(asked.path)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return reply(*step) if step else None


@pytest.fixture
def gateways() -> Iterator[list[Gateway]]:
    """Collect the gateways of a test; those that still run are stopped at its end."""
    started: list[Gateway] = []
    yield started
    for gateway in started:
        gateway.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(correct, "_POLL_SECONDS", 0.02)


def wait_words(gateway: Gateway) -> list[str]:
    return ["jobs", "job-1", "--wait", "--url", gateway.url]


@pytest.mark.parametrize("trouble", [(503, AWAY), (502, {}), None], ids=["503", "proxy", "hangs up"])
def test_a_gateway_that_cannot_answer_for_a_while_ends_no_waiting(
    gateways: list[Gateway], capsys: pytest.CaptureFixture[str], trouble: tuple[int, dict] | None
):
    gateways.append(Gateway(0, [(200, JOB), (200, JOB), trouble, trouble, (200, JOB), (200, DONE)]))
    assert main([*wait_words(gateways[0]), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["status"] == "succeeded"
    assert shown.err.count("the job may go on, asking again for 5 min") == 1
    assert shown.err.count("the server answers again") == 1


@pytest.mark.parametrize(
    "said",
    [
        "null",
        "[]",
        "7",
        '"x"',
        "{",
        "{}",
        '{"message":"an event without an id"}',
        '{"id":null,"message":"x"}',
        '{"error":"x"}',
        '{"error":null}',
        '{"error":{"message":"x"}}',
        '{"id":"job-1","status":"succeeded"}',
        '{"id":"1-0","message":"step","data":{"step":1}}',
    ],
)
def test_a_stream_that_breaks_off_or_ends_too_early_is_read_again_after_a_pause(
    gateways: list[Gateway], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, said: str
):
    pauses: list[float] = []
    monkeypatch.undo()
    monkeypatch.setattr(watch.time, "sleep", pauses.append)
    gateways.append(Gateway(0, [*[(200, JOB)] * 4, (200, DONE)], f"data: {said}\n\n".encode()))
    assert main([*wait_words(gateways[0]), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["outcome"] == "learned"
    assert shown.err == ""
    assert pauses == [2.0, 2.0]


def test_a_gateway_that_is_started_again_is_found_again(gateways: list[Gateway]):
    gateways.append(Gateway(0, [(200, JOB)]))
    port = gateways[0].server_port
    told: list[str] = []
    with Client(f"http://127.0.0.1:{port}") as client:
        looks = watch.follow(client, "job-1", tell=told.append)
        assert next(looks)[0]["status"] == "running"
        gateways[0].stop()
        again = threading.Timer(0.3, lambda: gateways.append(Gateway(port, [(200, DONE)])))
        again.start()
        assert next(looks)[0]["status"] == "succeeded"
        again.join()
    assert told[0].startswith(f"no server answers at http://127.0.0.1:{port}")
    assert told[1:] == ["the server answers again"]


def test_a_job_that_nobody_answers_for_any_more_is_not_called_failed(
    gateways: list[Gateway],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(watch, "_PATIENCE_SECONDS", 0.1)
    gateways.append(Gateway(0, [(503, AWAY)]))
    data = tmp_path / "data.json"
    data.write_text("[]")
    words = ["submit", str(data), "--task", "digits", *wait_words(gateways[0])[2:]]
    assert main(words) == EXIT_LOST_SIGHT == 4
    assert "look again with: strata jobs job-1 --wait" in capsys.readouterr().err
    assert main([*words, "--json"]) == EXIT_LOST_SIGHT
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "lost_sight"
    assert "4 lost sight of a job" in " ".join(build_parser().format_help().split())


def test_what_was_never_seen_is_not_waited_for(gateways: list[Gateway], capsys: pytest.CaptureFixture[str]):
    gateways.append(Gateway(0, [(200, JOB)]))
    words = wait_words(gateways[0])
    gateways[0].stop()
    assert main(words) == 1
    assert "no server answers at" in capsys.readouterr().err


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Return a command that corrects and waits, but for the address."""
    picture = tmp_path / "cat.png"
    picture.write_bytes(png("blue"))
    return ["correct", "--image", str(picture), "What is shown?", "a cat", "--wait"]


def address(gateway: Gateway) -> list[str]:
    return ["--url", gateway.url]


@pytest.mark.parametrize("now", [[], ["--now"]], ids=["by age", "now"])
def test_a_correction_that_waits_outlives_a_restart(
    gateways: list[Gateway], words: list[str], capsys: pytest.CaptureFixture[str], now: list[str]
):
    script = [(200, KEPT), (503, AWAY), None, (200, SENT), (503, AWAY), (200, JOB), (200, DONE)]
    gateways.append(Gateway(0, script[1:] if now else script))
    assert main([*words, *now, *address(gateways[0]), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["id"] == "job-1"
    assert shown.err.count("the correction is kept, asking again for 5 min") == 1
    assert shown.err.count("the job may go on, asking again for 5 min") == 1
    assert set(gateways[0].paths) == {"/v1/feedback/digits/fb-1", "/v1/fine_tuning/jobs/job-1"}


def test_a_correction_that_nobody_answers_for_is_not_called_failed(
    gateways: list[Gateway],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(watch, "_PATIENCE_SECONDS", 0.1)
    gateways.append(Gateway(0, [(200, KEPT), (503, AWAY)]))
    assert main([*words, *address(gateways[0])]) == EXIT_LOST_SIGHT
    assert "whether a job has it is not known" in " ".join(capsys.readouterr().err.split())


def test_a_correction_that_is_kept_and_not_queued_is_not_called_failed(
    gateways: list[Gateway],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(correct, "_PATIENCE_SECONDS", -19.8)
    gateways.append(Gateway(0, [(200, KEPT)]))
    assert main([*words, *address(gateways[0]), "--json"]) == EXIT_LOST_SIGHT
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "not_queued"
    assert error["message"].startswith("the correction is kept, but was not queued within")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, GONE), "the correction cannot be followed any more: no correction"),
        (
            (200, {**KEPT, "status": "replaced", "reasons": ["a later one"]}),
            "in no job of digits: a later one",
        ),
        ((200, {**KEPT, "status": "refused", "reasons": ["no picture"]}), "in no job of digits: no picture"),
    ],
    ids=["forgotten", "replaced", "refused"],
)
def test_a_correction_that_no_job_has_is_said_to_be(
    gateways: list[Gateway],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    answer: tuple[int, dict[str, Any]],
    said: str,
):
    gateways.append(Gateway(0, [(200, KEPT), answer]))
    assert main([*words, *address(gateways[0]), "--json"]) == 1
    assert said in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(("age", "pause"), [(0.0, 2.0), (19.9, 0.5)], ids=["long before", "when it is due"])
def test_a_correction_is_asked_for_more_often_once_it_is_due(
    gateways: list[Gateway], words: list[str], monkeypatch: pytest.MonkeyPatch, age: float, pause: float
):
    pauses: list[float] = []
    monkeypatch.undo()
    monkeypatch.setattr(correct.time, "sleep", pauses.append)
    waits = {**KEPT, "pending": {**KEPT["pending"], "oldest_seconds": age}}
    gateways.append(Gateway(0, [(200, waits), (200, SENT), (200, DONE)]))
    assert main([*words, *address(gateways[0]), "--json"]) == 0
    assert pauses == [pytest.approx(pause)]
