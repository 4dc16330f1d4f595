"""Clients that do not wait for a canary's answer say by that how slow it is."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.contract.conftest import RunningGateway, chat_body, wait_for
from tests.contract.publishing import PICTURE, Publisher
from tests.contract.test_canary import begin, seen_of
from tests.contract.test_live_versions import move

CHAT = "/v1/chat/completions"


@pytest.fixture
def hung(running: RunningGateway, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a version that answers everybody as a canary and takes a second to begin."""
    stable, canary = (publisher.publish(publisher.state(seed)).version for seed in (2, 1))
    move(running, stable)
    begin(running, canary, 1.0)
    runner: Any = running.gateway.serving.engine._runner  # type: ignore[union-attr]
    embed = runner._embed

    def slow(piece: Any) -> Any:
        time.sleep(1.0)
        return embed(piece)

    monkeypatch.setattr(runner, "_embed", slow)
    return canary


def test_waiting_that_was_given_up_counts_as_waiting(running: RunningGateway, hung: str):
    body = {**chat_body(image=PICTURE), "model": "strata"}
    for number, more in enumerate(({}, {"stream": True}), start=1):
        with pytest.raises(httpx.ReadTimeout):
            running.http.post(CHAT, json={**body, **more}, timeout=0.4)
        wait_for(lambda wanted=number: seen_of(running, "canary")["requests"] == wanted)
    seen = seen_of(running, "canary")
    assert (seen["version"], seen["errors"]) == (hung, 0)
    assert 0.3 < seen["p95_first_token_seconds"] < 30
    assert running.metric("strata_slot_first_token_seconds_count", slot="canary") == 2
    assert running.metric("strata_slot_errors_total", slot="canary") == 0


def test_a_stream_that_is_left_counts_with_the_token_it_waited_for(
    running: RunningGateway, hung: str, monkeypatch: pytest.MonkeyPatch
):
    runner: Any = running.gateway.serving.engine._runner  # type: ignore[union-attr]
    decode = runner.decode

    def slow(rows: Any) -> Any:
        time.sleep(0.5)
        return decode(rows)

    monkeypatch.setattr(runner, "decode", slow)
    body = {**chat_body(image=PICTURE), "model": "strata", "stream": True}
    with running.http.stream("POST", CHAT, json=body) as stream:
        assert stream.headers["x-adapter-version"] == hung
        lines = stream.iter_lines()  # kept: without it the stream is closed
        next(lines)
        assert seen_of(running, "canary")["requests"] == 0
    wait_for(lambda: seen_of(running, "canary")["requests"] == 1, 10)
    seen = seen_of(running, "canary")
    assert seen["errors"] == 0
    assert seen["p95_token_seconds"] is not None, "an answer this short is judged by it only if it was left"
