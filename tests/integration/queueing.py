"""What the queue's tests share: a job, a claim, and time that passes without waiting."""

from __future__ import annotations

import threading
from typing import Any

import redis

from adapter_store.datasets.records import DatasetRef
from adapter_store.jobs import Claim, Job, JobQueue

REF = DatasetRef("ds-0123456789abcdef", 3, 2, "d" * 64)
STREAM, WRITER, GROUP = "strata:{strata}:jobs", "strata:{strata}:writer", "workers"
DEAD = "strata:{strata}:dead"


def job(**fields: Any) -> Job:
    return Job(lineage="strata", dataset=REF, **fields)


def taken(queue: JobQueue, worker: str = "w", block_seconds: float = 0) -> Claim:
    claim = queue.claim(worker, block_seconds)
    assert claim is not None
    return claim


def lapse(client: redis.Redis) -> None:
    """Let a minute pass for Redis: leases run out, entries have been idle. No test has to sleep for it."""
    client.delete(WRITER)
    for entry in pending(client):
        name, number = entry["consumer"], entry["message_id"]
        client.xclaim(STREAM, GROUP, name, 0, [number], idle=61_000, justid=True)


def pending(client: redis.Redis) -> list[dict[str, Any]]:
    return client.xpending_range(STREAM, GROUP, "-", "+", 10)  # pyright: ignore[reportReturnType]


def dead_letters(client: redis.Redis) -> list[dict[str, str]]:
    """Return what was given up, newest first."""
    entries: Any = client.xrevrange(DEAD)
    return [fields for _, fields in entries]


def in_threads(count: int, target: Any) -> None:
    threads = [threading.Thread(target=target, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
