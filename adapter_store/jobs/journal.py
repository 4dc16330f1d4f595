"""Accepted jobs on disk, so that losing Redis loses none of them.

The order that keeps the promise: write the data set, ``record`` the job, ``submit`` it,
answer 202. After a start, and whenever Redis came back empty, ``reconcile`` submits what
Redis does not know. Submitting is idempotent per job id, so doing it twice is harmless.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from adapter_store.durable import make_folder, sync_folder, write_durably
from adapter_store.errors import ConflictError, NotFoundError
from adapter_store.jobs.queue import JobQueue, leaves_at
from adapter_store.jobs.record import Job, check_job_id

logger = logging.getLogger(__name__)


class JobJournal:
    """Keep one JSON file per job in a folder, each written atomically and synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended: set[str] = set()
        make_folder(folder)

    def record(self, job: Job) -> None:
        """Write the job: before it is submitted, and again with its outcome.

        An outcome stays: a later record that says the job is still on its way is dropped.
        """
        if not job.status.terminal:
            known = self.get(job.id)
            if known is not None and known.status.terminal:
                return
        write_durably(self._path(job.id), job.model_dump_json(indent=1).encode())

    def forget(self, job_id: str) -> None:
        """Remove a job, for one that was recorded but turned out to repeat another request."""
        self._path(job_id).unlink(missing_ok=True)
        sync_folder(self._folder)

    def get(self, job_id: str) -> Job | None:
        """Return the job as last recorded, or None."""
        return self._read(self._path(job_id))

    def all(self) -> list[Job]:
        """Return every recorded job, oldest first; files that cannot be read are logged and left alone."""
        jobs = [self._read(path) for path in sorted(self._folder.glob("job-*.json"))]
        return _in_order([job for job in jobs if job is not None])

    def pending(self) -> list[Job]:
        """Return the jobs without an outcome, oldest first; files of ended jobs are read once only."""
        unread = [path for path in sorted(self._folder.glob("job-*.json")) if path.stem not in self._ended]
        return _in_order([job for job in map(self._read, unread) if job and not job.status.terminal])

    def reconcile(self, queue: JobQueue, *, ended: bool = True) -> int:
        """Bring Redis and the journal to agree; return how many jobs were submitted again.

        Jobs that Redis does not know are submitted (unfinished) or restored (finished,
        so that listings and idempotency keys survive), unless they ended so long ago that
        Redis has let them go. Outcomes that only Redis knows are recorded, and then the
        job is retired there. Of several jobs with one idempotency key the oldest counts.

        Args:
            queue: The queue to agree with.
            ended: Whether to look at ended jobs too; they only change when Redis is new or was away.

        Raises:
            QueueUnavailable: Redis does not answer; what was done so far is kept.
        """
        submitted = 0
        holders: dict[str, str] = {}
        for job in self.all() if ended else self.pending():
            if job.lineage != queue.lineage:
                continue
            key = job.idempotency_key
            if key is not None and not _has_left(job) and holders.setdefault(key, job.id) != job.id:
                self.forget(job.id)
                continue
            submitted += self._agree(queue, job)
        return submitted

    def _agree(self, queue: JobQueue, job: Job) -> int:
        try:
            current = queue.get(job.id)
        except NotFoundError:
            if _has_left(job):
                return 0
            if job.status.terminal:
                try:
                    queue.retire(queue.restore(job))
                except ConflictError as error:
                    logger.warning("job %s stays in the journal only: %s", job.id, error.message)
                return 0
            try:
                holder = queue.submit(job).id
            except ConflictError:
                holder = None
            except NotFoundError as error:
                logger.warning("job %s is kept on disk but not submitted: %s", job.id, error.message)
                return 0
            if holder != job.id:
                self.forget(job.id)
            return int(holder == job.id)
        if current.status.terminal:
            if not job.status.terminal:
                self.record(current)
            queue.retire(current)
        return 0

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{check_job_id(job_id)}.json"

    def _read(self, path: Path) -> Job | None:
        try:
            job = Job.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("job record %s cannot be read and is left alone: %s", path.name, error)
            return None
        if job.status.terminal:
            self._ended.add(job.id)
        return job


def _has_left(job: Job) -> bool:
    return job.status.terminal and leaves_at(job) <= time.time()


def _in_order(jobs: list[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.created_at, job.id))
