"""Accepted jobs on disk, so that losing Redis loses none of them."""

from __future__ import annotations

from pathlib import Path

from adapter_store.jobs.queue import JobQueue
from adapter_store.jobs.record import Job


class JobJournal:
    """One JSON file per job, written atomically and synced."""

    def __init__(self, folder: Path) -> None: ...

    def record(self, job: Job) -> None:
        """Write the job (before submit, and again when it is terminal)."""
        raise NotImplementedError

    def get(self, job_id: str) -> Job | None:
        raise NotImplementedError

    def all(self) -> list[Job]:
        raise NotImplementedError

    def pending(self) -> list[Job]:
        """Return the jobs that are not terminal, oldest first."""
        raise NotImplementedError

    def reconcile(self, queue: JobQueue) -> int:
        """Submit again what Redis lost, note what finished meanwhile; return how many were submitted."""
        raise NotImplementedError
