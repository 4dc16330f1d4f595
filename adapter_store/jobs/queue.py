"""The queue of one lineage: Redis Streams with a consumer group, leases and fencing tokens."""

from __future__ import annotations

from typing import Any

import redis

from adapter_store.jobs.claim import Claim
from adapter_store.jobs.record import EventLevel, EventType, Job, JobEvent


class JobQueue:
    """Hand out the jobs of one lineage, one at a time."""

    def __init__(
        self, client: redis.Redis, lineage: str, *, lease_seconds: float = 30, max_deliveries: int = 3
    ) -> None: ...

    def submit(self, job: Job) -> Job:
        """Queue a job once; return the job that already holds the id or idempotency key, else this one (queued).

        Raises ConflictError (idempotency key used for another request), QueueUnavailable.
        """
        raise NotImplementedError

    def get(self, job_id: str) -> Job:
        """Return a job; raise NotFoundError."""
        raise NotImplementedError

    def list(self, limit: int = 20, after: str | None = None) -> list[Job]:
        """Return jobs, newest first, those behind job ``after``."""
        raise NotImplementedError

    def cancel(self, job_id: str) -> Job:
        """Cancel: at once when queued, by flag when running; ConflictError when succeeded or failed."""
        raise NotImplementedError

    def is_cancelled(self, job_id: str) -> bool:
        raise NotImplementedError

    def events(self, job_id: str, after: str = "0", limit: int = 100) -> list[JobEvent]:
        raise NotImplementedError

    def append_event(
        self,
        job_id: str,
        message: str,
        *,
        level: EventLevel = "info",
        type: EventType = "message",
        data: dict[str, Any] | None = None,
    ) -> str:
        """Append an event; return its id."""
        raise NotImplementedError

    def update(self, job_id: str, **fields: Any) -> Job:
        """Change fields of a job that is not terminal (ConflictError otherwise)."""
        raise NotImplementedError

    def depth(self) -> int:
        """Return the number of jobs that wait for a worker."""
        raise NotImplementedError

    def oldest_seconds(self) -> float:
        """Return how long the oldest waiting job has waited; 0.0 if none waits."""
        raise NotImplementedError

    def claim(self, worker: str, block_seconds: float = 0) -> Claim | None:
        raise NotImplementedError
