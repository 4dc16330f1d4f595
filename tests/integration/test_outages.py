"""A worker whose Redis goes away, comes back or is full: the training goes on and the job ends once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter_store.errors import QueueUnavailable
from adapter_store.jobs import JobQueue, JobStatus, connect
from adapter_store.redis_server import RedisServer
from tests.integration.queueing import job, taken
from tests.integration.working import Site
from trainer_worker import hold, pipeline
from trainer_worker.hold import Hold


class Outage:
    """A Redis that a test switches off and on."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._server = RedisServer.start(home)
        self.url = self._server.url

    def begin(self) -> None:
        self._server.stop()

    def end(self) -> None:
        self._server = RedisServer.start(self._home)


@pytest.fixture
def outage(tmp_path: Path) -> Iterator[Outage]:
    redis = Outage(tmp_path / "redis")
    yield redis
    redis.begin()


@pytest.fixture
def site(tmp_path: Path, tiny_base: Path, outage: Outage) -> Iterator[Site]:
    here = Site(tmp_path, tiny_base, outage.url)
    yield here
    here.client.close()


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for every step's progress and cancellation, so that an outage is met for certain."""
    monkeypatch.setattr(hold, "CANCEL_POLL_SECONDS", 0.0)
    monkeypatch.setattr(hold, "QUIET_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(hold, "RETRY_SECONDS", (0.05,))
    monkeypatch.setattr("trainer_worker.progress.METRICS_EVERY_SECONDS", 0.0)


def around_steps(monkeypatch: pytest.MonkeyPatch, first: Any, then: Any, last: int = 5) -> None:
    """Call ``first`` after the first training step and ``then`` after the fifth."""
    original = pipeline._Run._report

    def report(self: Any, step: Any) -> None:
        original(self, step)
        if step.step == 1:
            first()
        if step.step == last:
            then()

    monkeypatch.setattr(pipeline._Run, "_report", report)


def test_an_outage_costs_no_training(site: Site, outage: Outage, monkeypatch: pytest.MonkeyPatch):
    around_steps(monkeypatch, outage.begin, outage.end)
    job = site.finish(site.submit("colors", epochs=10))
    assert (job.status, job.attempts, job.result_version) == (JobStatus.SUCCEEDED, 1, "v1"), job
    told = [event.data["step"] for event in site.queue.events(job.id, limit=500) if event.type == "metrics"]
    assert 1 in told
    assert 3 not in told
    assert told[-1] > 5


def test_a_full_redis_costs_no_training(site: Site, monkeypatch: pytest.MonkeyPatch):
    def fill() -> None:
        site.client.set("ballast", "x" * 3_000_000)
        site.client.config_set("maxmemory", "1mb")

    around_steps(monkeypatch, fill, lambda: None)
    job = site.finish(site.submit("colors", epochs=10))
    assert (job.status, job.attempts, job.decision) == (JobStatus.SUCCEEDED, 1, "expand"), job


def test_an_outcome_waits_for_redis(site: Site, outage: Outage, monkeypatch: pytest.MonkeyPatch):
    original = pipeline.promote

    def promote(*args: Any) -> Any:
        promotion = original(*args)
        outage.begin()
        threading.Timer(0.5, outage.end).start()
        return promotion

    monkeypatch.setattr(pipeline, "promote", promote)
    job = site.submit("colors", epochs=10)
    site.worker().run_one(1.0)
    job = site.queue.get(job.id)
    assert (job.status, job.attempts, job.result_version) == (JobStatus.SUCCEEDED, 1, "v1"), job


def test_what_was_untold_is_told_with_the_next_update(outage: Outage):
    queue = JobQueue(connect(outage.url), "strata", lease_seconds=60)
    asked = queue.submit(job())
    holding = Hold(taken(queue), threading.Event(), threading.Event())
    outage.begin()
    holding.update(phase="train", task="digits")
    holding.event("nobody hears this")
    holding.check()
    outage.end()
    holding.update(phase="gate")
    told = queue.get(asked.id)
    assert (told.phase, told.task) == ("gate", "digits")
    assert queue.events(asked.id) == []


def test_a_worker_that_stops_does_not_wait_for_redis(outage: Outage):
    queue = JobQueue(connect(outage.url), "strata", lease_seconds=60)
    asked = queue.submit(job())
    stop = threading.Event()
    holding = Hold(taken(queue), threading.Event(), stop)
    outage.begin()
    stop.set()
    with pytest.raises(QueueUnavailable, match=asked.id):
        holding.finish(JobStatus.SUCCEEDED)
    outage.end()


def test_redis_that_does_not_answer_is_left_alone_for_a_while(
    outage: Outage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hold, "QUIET_SECONDS", (3600.0, 3600.0))
    queue = JobQueue(connect(outage.url), "strata", lease_seconds=60)
    asked = queue.submit(job())
    claim = taken(queue)
    holding = Hold(claim, threading.Event(), threading.Event())
    outage.begin()
    holding.check()
    outage.end()
    queue.cancel(asked.id)
    holding.check()
    holding.event("not even tried")
    assert queue.events(asked.id) == []
    holding.finish(JobStatus.CANCELLED)
    assert queue.get(asked.id).status is JobStatus.CANCELLED
