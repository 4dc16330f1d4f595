"""However much is taught or however long Redis hangs: questions are answered meanwhile."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.contract.conftest import RunningGateway, chat_body, wait_for
from tests.contract.pictures import examples

SHARED_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""What ``asyncio.to_thread`` has for everybody."""


@contextmanager
def many(ask: Callable[[], httpx.Response]) -> Iterator[list[Future[httpx.Response]]]:
    """Send more requests at once than there are shared threads."""
    with ThreadPoolExecutor(SHARED_THREADS + 2) as clients:
        yield [clients.submit(ask) for _ in range(SHARED_THREADS + 2)]


def answers_questions(running: RunningGateway) -> None:
    for _ in range(3):
        assert running.http.post("/v1/chat/completions", json=chat_body(), timeout=60).status_code == 200
    assert running.http.get("/metrics", timeout=60).status_code == 200


def test_many_long_validations_keep_no_question_waiting(
    running: RunningGateway, monkeypatch: pytest.MonkeyPatch
):
    store = running.gateway.datasets
    validate, begun, go_on = store.validate_examples, threading.Semaphore(0), threading.Event()

    def slow(given: list[Any], **how: Any) -> object:
        begun.release()
        assert go_on.wait(300)
        return validate(given, **how)

    monkeypatch.setattr(store, "validate_examples", slow)
    body = {"examples": examples(1)}
    with many(lambda: running.http.post("/v1/datasets:validate", json=body)) as answers:
        try:
            for _ in range(4):
                assert begun.acquire(timeout=60)
            answers_questions(running)
            assert running.http.get("/v1/files", timeout=60).status_code == 200
            assert running.http.get("/v1/jobs", timeout=60).status_code == 200
        finally:
            go_on.set()
        assert {answer.result().status_code for answer in answers} == {200}


def test_a_redis_that_hangs_keeps_no_question_waiting(running: RunningGateway):
    assert running.http.get("/v1/jobs").status_code == 200
    pid = int(json.loads((running.home / "redis/owner.json").read_text())["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        with many(lambda: running.http.get("/v1/jobs")) as answers:
            try:
                answers_questions(running)
                assert not any(answer.done() for answer in answers)
            finally:
                os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert {answer.result().status_code for answer in answers} <= {200, 503}
    wait_for(lambda: running.metric("strata_queue_up") == 1)
