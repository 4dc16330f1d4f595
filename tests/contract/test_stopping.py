"""A stop ends what still runs in words, and more answers than ever fit are refused for good."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.conftest import KEY, RunningGateway, chat_body
from tests.contract.pictures import examples

CHAT = "/v1/chat/completions"
Start = Callable[..., RunningGateway]


@pytest.fixture
def start(tmp_path: Path, tiny_base: Path) -> Iterator[Start]:
    """Return what starts a gateway of the test's own."""
    started: list[RunningGateway] = []

    def start_one(**options: float) -> RunningGateway:
        started.append(RunningGateway(tmp_path / "home", tiny_base, **options))
        return started[-1].wait_ready()

    yield start_one
    for gateway in started:
        gateway.stop()


def lines_after_stop(running: RunningGateway, method: str, path: str, **options: Any) -> list[str]:
    """Return the lines of a stream whose server is told to stop when it has begun."""
    headers = {"authorization": f"Bearer {KEY}", "accept": "text/event-stream"}
    with (
        httpx.Client(base_url=running.url, headers=headers, timeout=60, trust_env=False) as client,
        client.stream(method, path, **options) as answer,
    ):
        assert answer.status_code == 200
        running.begin_to_stop()
        return [line for line in answer.iter_lines() if line]


def test_a_stream_that_outlives_the_stop_ends_with_an_error_and_done(
    start: Start, caplog: pytest.LogCaptureFixture
):
    running = start(answer_seconds=0.1)
    body = chat_body("Tell me a long story.", stream=True, n=8, temperature=1.5)
    with caplog.at_level(logging.INFO):
        lines = lines_after_stop(running, "POST", CHAT, json={**body, "max_tokens": 900})
        running.stop()
    assert lines[-1] == "data: [DONE]"
    assert "the server is stopping" in lines[-2]
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_followed_job_is_let_go_at_once(start: Start):
    running = start(answer_seconds=4.0)
    job = running.http.post("/v1/tasks/colors/batches", json={"examples": examples()}).json()
    lines = lines_after_stop(running, "GET", f"/v1/jobs/{job['id']}/events?stream=true")
    assert lines[-2] == "event: error"
    assert "the server is stopping" in lines[-1]


def test_more_answers_than_ever_fit_are_a_wrong_request_and_as_many_as_fit_are_given(start: Start):
    running = start(max_batch=2, max_waiting=2)
    answers = running.http.post(CHAT, json=chat_body(n=4))
    assert answers.status_code == 200, answers.text
    assert len(answers.json()["choices"]) == 4
    refused = running.http.post(CHAT, json=chat_body(n=5))
    assert refused.status_code == 400
    assert "at most 4" in refused.json()["error"]["message"]
