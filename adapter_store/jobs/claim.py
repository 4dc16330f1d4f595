"""A worker's hold on one job: heartbeat, fenced updates, fenced finish."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adapter_store.jobs.record import EventLevel, EventType, Job, JobStatus


class Claim:
    """One job, held under one fencing token."""

    job: Job
    fence: int

    def heartbeat(self) -> bool:
        """Renew the lease; False: another worker took over."""
        raise NotImplementedError

    @contextmanager
    def kept_alive(self) -> Iterator[threading.Event]:
        """Heartbeat from a thread; the event is set once the lease is lost."""
        raise NotImplementedError

    def update(self, **fields: Any) -> Job:
        """Change fields while the lease is held; raise LeaseLost otherwise."""
        raise NotImplementedError

    def event(
        self, message: str, *, level: EventLevel = "info", type: EventType = "message", data: dict[str, Any] | None = None
    ) -> str:
        """Append an event while the lease is held; raise LeaseLost otherwise."""
        raise NotImplementedError

    def is_cancelled(self) -> bool:
        raise NotImplementedError

    def finish(self, status: JobStatus | str, **fields: Any) -> Job:
        """Write the outcome and acknowledge in one step; raise LeaseLost if a newer claim exists."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the job back at once (worker shuts down); the attempt is not counted."""
        raise NotImplementedError
