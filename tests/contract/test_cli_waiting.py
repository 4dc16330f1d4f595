"""``--wait`` follows a job by its stream of events: few requests, and the end is noticed at once."""

from __future__ import annotations

import json
import threading

import httpx
import pytest

from server.cli import watch
from server.cli.client import Client
from server.cli.main import main
from tests.contract.conftest import KEY, RunningGateway, wait_for
from tests.contract.pictures import examples
from tests.contract.test_teaching import claimed

ROUTES = ("/v1/fine_tuning/jobs/{job_id}", "/v1/fine_tuning/jobs/{job_id}/events")


@pytest.fixture
def job(http: httpx.Client) -> str:
    body = {"examples": examples(4)}
    return http.post("/v1/tasks/digits/batches", json=body).raise_for_status().json()["id"]


def asked(running: RunningGateway) -> float:
    """Return how often jobs and their events were asked for."""
    labels = {"method": "GET", "status": "200"}
    return sum(running.metric("strata_http_requests_total", route=r, **labels) or 0 for r in ROUTES)


def test_a_long_job_takes_a_handful_of_requests_and_its_end_is_noticed_at_once(
    running: RunningGateway, job: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "_POLL_SECONDS", 3600.0)
    before = asked(running)
    words = ["jobs", job, "--wait", "--json", "--url", running.url, "--api-key", KEY]
    status: list[int] = []
    waiting = threading.Thread(target=lambda: status.append(main(words)), daemon=True)
    waiting.start()
    wait_for(lambda: asked(running) >= before + 3)  # it has looked; what comes now, the stream tells
    claim = claimed(running.gateway.link.queue(), job)
    for step in range(1, 301):
        claim.event("step", type="metrics", data={"step": step, "total_steps": 300, "loss": 1 / step})
    gate = {"passed": True, "reasons": [], "promotion": "promoted"}
    claim.finish("succeeded", result_version="v1", gate=gate)
    waiting.join(60)
    assert not waiting.is_alive()
    assert status == [0]
    assert json.loads(capsys.readouterr().out)["outcome"] == "learned"
    assert asked(running) - before <= 6


def test_every_event_is_told_once_and_in_order(running: RunningGateway, job: str):
    claim = claimed(running.gateway.link.queue(), job)
    before, after = [f"before {n}" for n in range(250)], [f"after {n}" for n in range(10)]
    for text in before:
        claim.event(text)
    seen: list[str] = []
    with Client(running.url, KEY) as client:
        looks = watch.follow(client, job)
        seen += [event["message"] for event in next(looks)[1]]
        for text in after:
            claim.event(text)
        claim.finish("cancelled")
        seen += [event["message"] for _, events in looks for event in events]
        listed = [event["message"] for event in watch.new_events(client, job, None)]
        newest = [event["message"] for event in watch.last_events(client, job, 3)]
    assert [text for text in seen if text in {*before, *after}] == [*before, *after]
    assert listed == seen
    assert newest == seen[-3:]
