"""Made-up requests, good and bad, drawn from `/openapi.json`: no 500, and no status that is not there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import KEY, RunningGateway, chat_body

schemathesis: Any = pytest.importorskip("schemathesis", reason="needs schemathesis, which `make` installs")
hypothesis: Any = pytest.importorskip("hypothesis")

pytestmark = pytest.mark.slow
SEED = 20261126
REQUESTS = 12
"""For each endpoint and each of the two modes."""
SECONDS = 75.0
"""For all together; what is left out for lack of time is a fault of this test."""
SHAPE = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a gateway of its own: what made-up requests leave behind bothers no other test."""
    gateway = RunningGateway(tmp_path_factory.mktemp("home"), tiny_base, default_max_tokens=4)
    try:
        yield gateway.wait_ready()
    finally:
        gateway.stop()


def faults_of(operation: Any, mode: Any, deadline: float) -> list[str]:
    """Send made-up requests to one endpoint; return what must not be."""
    faults: list[str] = []
    described = set(operation.definition.raw["responses"])

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if time.monotonic() > deadline:
            return
        try:
            answer = case.call(headers={"authorization": f"Bearer {KEY}"}, timeout=30)
        except (ValueError, UnicodeError):
            raise hypothesis.errors.UnsatisfiedAssumption from None  # nothing that an HTTP client could send
        status = answer.status_code
        where = f"{operation.label} {mode.name}: {status} {answer.text[:200]}"
        if status == 500 or not {str(status), f"{status // 100}XX"} & described:
            faults.append(where)
        elif status >= 400 and not set(answer.json().get("error", ())) >= SHAPE:
            faults.append(f"no error in the one shape: {where}")

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        pass  # nothing to vary: every request of that mode is a good one
    return faults


def test_made_up_requests_get_described_answers(fuzzed: RunningGateway):
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    deadline = time.monotonic() + SECONDS
    faults: list[str] = []
    asked = 0
    for drawn in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            faults += faults_of(drawn.ok(), mode, deadline)
            asked += 1
    assert asked >= 60
    assert faults == []
    assert time.monotonic() < deadline, "give it fewer requests: not every endpoint was asked"
    assert fuzzed.http.post("/v1/chat/completions", json=chat_body()).status_code == 200
