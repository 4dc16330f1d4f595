"""Made-up requests, good and bad, drawn from `/openapi.json`: no 500, no answer that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from adapter_store.base.load import Base
from tests.contract.conftest import KEY, RunningGateway, chat_body
from tests.contract.correcting import given
from tests.contract.publishing import Publisher

schemathesis: Any = pytest.importorskip("schemathesis", reason="needs schemathesis, which `make` installs")
hypothesis: Any = pytest.importorskip("hypothesis")

REQUESTS = 8
"""For each endpoint and each of the two modes; derandomized, so that all runs send the same."""
SHAPE = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def fuzzed(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, loaded_tiny_base: Base
) -> Iterator[RunningGateway]:
    """Return a gateway of its own, with a version: what is left behind bothers no other test."""
    gateway = RunningGateway(tmp_path_factory.mktemp("home"), tiny_base, default_max_tokens=4)
    try:
        gateway.wait_ready()
        publisher = Publisher(loaded_tiny_base, gateway.gateway.store)
        publisher.publish(publisher.state(1))
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture(scope="module")
def present(fuzzed: RunningGateway) -> dict[str, str]:
    """Return names of what there is, by path parameter; the job has ended, and so does the stream of it."""
    http = fuzzed.http
    file = http.post("/v1/files", files={"file": ("a.json", b"[]")}, data={"purpose": "fine-tune"}).json()
    examples = {"examples": [{"question": "Which?", "answer": "seven"}]}
    job = http.post("/v1/tasks/digits/batches", json=examples).json()
    http.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
    for alias in ("stable", "canary"):
        http.put(f"/v1/adapters/strata/aliases/{alias}", json={"version": "v1"}).raise_for_status()
    named = {"file_id": file["id"], "job_id": job["id"], "dataset_id": job["dataset"]["id"]}
    return {
        **named,
        "task": "digits",
        "correction": given(http, task="digits")["id"],
        "version": "v1",
        "name": "strata",
        "alias": "stable",
        "model": "strata@v1",
    }


def conformance() -> list[Any]:
    """Return what every answer must pass.

    Left out, since it is not so here: that what the schema allows is accepted (no schema can say which tasks
    there are), and that what it forbids is refused (a number may be a text, as in OpenAI's clients). Methods,
    keys and deleted things have tests of their own.
    """
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    kinds = ("status_code", "content_type", "response_headers", "response_schema")
    return [CHECKS.get_one(f"{kind}_conformance") for kind in kinds]


def can_be_wrong(operation: Any) -> bool:
    """Tell whether a request can break the schema: any text may stand in a path."""
    raw = operation.definition.raw
    outside_path = any(parameter["in"] != "path" for parameter in raw.get("parameters", ()))
    return "requestBody" in raw or outside_path


def faults_of(operation: Any, mode: Any, present: dict[str, str], checks: list[Any]) -> tuple[list[str], int]:
    """Send made-up requests to one endpoint, every second to what there is; return faults and how many."""
    faults: list[str] = []
    sent = count(1)
    asked = 0

    @hypothesis.settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        nonlocal asked
        if next(sent) % 2 and case.path_parameters:
            case.path_parameters.update({name: present[name] for name in case.path_parameters})
        try:
            answer = case.call(headers={"authorization": f"Bearer {KEY}"}, timeout=30)
        except (ValueError, UnicodeError):
            raise hypothesis.errors.UnsatisfiedAssumption from None  # nothing that an HTTP client could send
        asked += 1
        where = f"{operation.label} {mode.name}: {answer.status_code} {answer.content[:200]!r}"
        if answer.status_code == 500:
            faults.append(where)
        elif answer.status_code >= 400 and not set(answer.json().get("error", ())) >= SHAPE:
            faults.append(f"no error in the one shape: {where}")
        try:
            case.validate_response(answer, checks=checks)
        except schemathesis.core.failures.FailureGroup as group:
            faults.extend(f"{failure}: {where}" for failure in group.exceptions)

    ask()
    return faults, asked


def test_made_up_requests_get_described_answers(fuzzed: RunningGateway, present: dict[str, str]):
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    checks = conformance()
    faults: list[str] = []
    asked: dict[str, int] = {}
    for drawn in schema.get_all_operations():
        operation = drawn.ok()
        for mode in schemathesis.GenerationMode:
            if mode is schemathesis.GenerationMode.POSITIVE or can_be_wrong(operation):
                found, asked[f"{operation.label} {mode.name}"] = faults_of(operation, mode, present, checks)
                faults += found
    assert len(asked) >= 60
    assert all(asked.values()), asked
    assert faults == []
    assert fuzzed.http.post("/v1/chat/completions", json=chat_body()).status_code == 200
