"""What ended leaves Redis, whose room is small; the journal keeps it, and nothing comes back from there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import redis

from adapter_store.errors import NotFoundError
from adapter_store.jobs import Job, JobJournal, JobQueue
from adapter_store.jobs.keys import EVENTS_SECONDS, METRICS_KEPT_AFTER
from tests.integration.queueing import job, taken


@pytest.fixture
def journal(tmp_path: Path) -> JobJournal:
    return JobJournal(tmp_path)


def ended(queue: JobQueue, journal: JobJournal, ago_seconds: float = 0, **fields: Any) -> Job:
    """Run one job to its end and let the journal see it."""
    asked = job(**fields)
    journal.record(asked)
    queue.submit(asked)
    taken(queue).finish("succeeded", result_version="v1", finished_at=time.time() - ago_seconds)
    journal.reconcile(queue)
    kept = journal.get(asked.id)
    assert kept is not None
    assert kept.status.terminal
    return kept


def keys_of(client: redis.Redis, job_id: str) -> list[Any]:
    keys: Any = client.keys(f"*{job_id}*")
    return keys


def test_most_metrics_go_when_a_job_has_ended_and_all_else_stays(queue: JobQueue, journal: JobJournal):
    asked = job()
    journal.record(asked)
    queue.submit(asked)
    claim = taken(queue)
    claim.event("train", type="phase")
    for done in range(120):
        claim.event(f"{done} of 120", data={"prepared": done, "to_prepare": 120})
    for step in range(610):
        claim.event(f"step {step}", type="metrics", data={"step": step})
    claim.event("the gate passed")
    before = queue.events(asked.id, limit=1001)
    journal.reconcile(queue)
    assert queue.events(asked.id, limit=1001) == before
    claim.finish("succeeded")
    journal.reconcile(queue)
    after = queue.events(asked.id, limit=1001)
    assert [after[0], after[-1]] == [before[0], before[-1]]
    metrics = [event for event in after if event.type == "metrics" or "prepared" in event.data]
    assert len(after) == len(metrics) + 2
    assert METRICS_KEPT_AFTER / 2 < len(metrics) <= METRICS_KEPT_AFTER
    assert metrics[-1] == before[-2]
    assert [event for event in before if event in after] == after
    journal.reconcile(queue)
    assert queue.events(asked.id, limit=1001) == after


def test_an_ended_job_and_its_idempotency_key_expire(
    queue: JobQueue, journal: JobJournal, redis_client: redis.Redis
):
    waiting = queue.submit(job(created_at=1.0))
    taken(queue).release()
    assert {redis_client.ttl(key) for key in keys_of(redis_client, waiting.id)} == {-1}
    queue.cancel(waiting.id)
    one = ended(queue, journal, idempotency_key="k")
    idempotency: Any = redis_client.keys("*:idempotency*")
    lasting = [redis_client.ttl(key) for key in (*keys_of(redis_client, one.id), *idempotency)]
    assert len(lasting) == 2
    assert all(EVENTS_SECONDS - 60 < left <= EVENTS_SECONDS for left in lasting)  # pyright: ignore[reportOperatorIssue]


def test_what_has_left_is_not_listed_nor_restored(
    queue: JobQueue, journal: JobJournal, redis_client: redis.Redis
):
    stays = ended(queue, journal, created_at=1.0)
    old = ended(queue, journal, EVENTS_SECONDS + 60, idempotency_key="k", created_at=2.0)
    newest = ended(queue, journal, created_at=3.0)
    assert keys_of(redis_client, old.id) == []
    assert [one.id for one in queue.list(limit=2)] == [newest.id, stays.id]
    assert [one.id for one in queue.list(limit=2, after=newest.id)] == [stays.id]
    again = job(idempotency_key="k")
    journal.record(again)
    assert queue.submit(again).id == again.id
    redis_client.flushall()
    assert journal.reconcile(queue) == 1
    assert {one.id for one in queue.list()} == {again.id, newest.id, stays.id}
    with pytest.raises(NotFoundError):
        queue.get(old.id)
    assert journal.get(old.id) == old
    assert redis_client.ttl(f"strata:{{strata}}:job:{stays.id}") > 0  # pyright: ignore[reportOperatorIssue]
