"""Accepted jobs on disk, so that losing Redis loses none of them.

The order that keeps the promise: write the data set, ``begin`` the job, ``submit`` it,
``accept`` it, answer 202. After a start, and whenever Redis came back empty, ``reconcile`` submits
what Redis does not know. Submitting is idempotent per job id, so doing it twice is harmless.

A refused job must not run later: it is forgotten, or, while nobody knows whether Redis took it,
``doubt``-ed. What is between ``begin`` and that is ``handed_in``, and ``reconcile`` leaves it alone. A job
whose gateway died there is submitted as well, but never in the place of one that was accepted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from adapter_store.durable import make_folder, sync_folder, write_durably
from adapter_store.errors import ConflictError, NotFoundError
from adapter_store.jobs.queue import JobQueue, leaves_at
from adapter_store.jobs.record import Job, check_job_id

logger = logging.getLogger(__name__)

_DOUBTED = "doubted-"
"""Begins the file of a job whose submission was refused without knowing whether Redis took it."""
_BEGUN = "begun-"
"""Begins the file of a job that no client was told of yet."""
_LOCK, _TURN = ".lock", ".turn"


class JobJournal:
    """Keep one JSON file per job in a folder, each written atomically and synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended: set[str] = set()
        self._under_way: set[str] = set()
        make_folder(folder)

    def begin(self, job: Job) -> None:
        """Write a job before it is submitted."""
        write_durably(self._begun(job.id), job.model_dump_json(indent=1).encode())

    def accept(self, job_id: str) -> None:
        """Keep a job that was begun: Redis took it, and its client will be told so."""
        begun, path = self._begun(job_id), self._path(job_id)
        if path.exists():  # a repetition of the request was answered with it meanwhile
            begun.unlink(missing_ok=True)
        else:
            begun.rename(path)
        sync_folder(self._folder)

    def record(self, job: Job) -> None:
        """Write a job that was accepted, and again with its outcome.

        An outcome stays: a later record that says the job is still on its way is dropped.
        """
        if not job.status.terminal:
            known = self.get(job.id)
            if known is not None and known.status.terminal:
                return
        write_durably(self._path(job.id), job.model_dump_json(indent=1).encode())

    def forget(self, job_id: str) -> None:
        """Remove a job, for one that was begun or recorded but turned out to repeat another request."""
        for path in (self._begun(job_id), self._path(job_id)):
            path.unlink(missing_ok=True)
        sync_folder(self._folder)

    def handed_in(self) -> AbstractContextManager[None]:
        """Keep ``reconcile`` from submitting what is begun inside, until it was accepted or forgotten.

        Several threads and processes may be inside at once, but nobody enters while ``reconcile`` waits; one
        that dies inside holds nobody up.
        """
        return self._locked(fcntl.LOCK_SH)

    def doubt(self, job_id: str) -> None:
        """Set a job aside that Redis may have taken: ``reconcile`` keeps it if so, else forgets it."""
        self._begun(job_id).rename(self._folder / f"{_DOUBTED}{self._path(job_id).name}")
        sync_folder(self._folder)

    def get(self, job_id: str) -> Job | None:
        """Return the job as last recorded, or None."""
        return self._read(self._path(job_id))

    def of_key(self, key: str | None, *, begun: bool = False) -> Job | None:
        """Return the job with an idempotency key, or None; with ``begun`` also one not accepted yet."""
        # What is begun is read first: if it is accepted meanwhile, it is among the others.
        found = self._begun_jobs() if begun else []
        return next((job for job in (*self.all(), *found) if job.idempotency_key == key), None)

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
        job is retired there. Of several jobs with one idempotency key the one that Redis knows counts, else
        one that has ended, else one that was accepted, else the oldest; the others are forgotten.

        Args:
            queue: The queue to agree with.
            ended: Whether to look at ended jobs too; they only change when Redis is new or was away.

        Raises:
            QueueUnavailable: Redis does not answer; what was done so far is kept.
        """
        self._settle_doubts(queue)
        jobs = self.all() if ended else self.pending()
        ours = [job for job in jobs if job.lineage == queue.lineage]
        count = sum(self._agree(queue, job) for job in sorted(ours, key=lambda job: not job.status.terminal))
        return count + self._settle_begun(queue)

    def _settle_begun(self, queue: JobQueue) -> int:
        """Decide on jobs whose gateway died before it answered; return how many were submitted.

        Most of what is begun is under way and soon over: who waits for it keeps all others out. So only what
        was begun at the look before, too, is waited for.
        """
        found = {path.name for path in self._folder.glob(f"{_BEGUN}job-*.json")}
        stays, self._under_way = bool(found & self._under_way), found
        if not found:
            return 0
        try:
            with self._locked(fcntl.LOCK_EX if stays else fcntl.LOCK_EX | fcntl.LOCK_NB):
                # Those that are left have nobody who hands them in.
                ours = [job for job in self._begun_jobs() if job.lineage == queue.lineage]
                return sum(self._settle(queue, job) for job in ours)
        except BlockingIOError:
            return 0

    def _settle(self, queue: JobQueue, job: Job) -> int:
        try:
            queue.get(job.id)
            count = 0
        except NotFoundError:
            count = self._bring_back(queue, job)
        if self._begun(job.id).exists():
            self.accept(job.id)
        return count

    def _settle_doubts(self, queue: JobQueue) -> None:
        for path in sorted(self._folder.glob(f"{_DOUBTED}job-*.json")):
            job = self._read(path)
            if job is None or job.lineage != queue.lineage:
                continue
            try:
                self._note(queue, queue.get(job.id))
            except NotFoundError:
                logger.info("job %s was refused and had not reached Redis", job.id)
            path.unlink(missing_ok=True)
            sync_folder(self._folder)

    def _agree(self, queue: JobQueue, job: Job) -> int:
        """Bring one job to agree; return 1 if it was submitted."""
        try:
            current = queue.get(job.id)
        except NotFoundError:
            if _has_left(job):
                return 0
            with self._locked(fcntl.LOCK_EX):
                now = self.get(job.id)  # whoever was handing it in may have refused it meanwhile
                return self._bring_back(queue, now) if now is not None else 0
        if current.status.terminal:
            if not job.status.terminal:
                self.record(current)
            queue.retire(current)
        return 0

    def _bring_back(self, queue: JobQueue, job: Job) -> int:
        """Submit or restore a job that Redis does not know; return 1 if it was submitted."""
        if job.status.terminal:
            try:
                queue.retire(queue.restore(job))
            except ConflictError as error:
                logger.warning("job %s stays in the journal only: %s", job.id, error.message)
            return 0
        try:
            holder = queue.submit(job)
        except ConflictError:
            self.forget(job.id)
            return 0
        except NotFoundError as error:
            logger.warning("job %s is kept on disk but not submitted: %s", job.id, error.message)
            return 0
        if holder.id == job.id:
            return 1
        self._note(queue, holder)
        self.forget(job.id)
        return 0

    def _note(self, queue: JobQueue, job: Job) -> None:
        """Record a job that is in Redis and that the journal may lack."""
        if self.get(job.id) is None:
            self.record(job)
        if job.status.terminal:
            self.record(job)
            queue.retire(job)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with ExitStack() as held:
            # flock lets those who share in before one who waits to be alone: whoever waits holds the turn.
            with _flocked(self._folder / _TURN, fcntl.LOCK_EX | how & fcntl.LOCK_NB):
                held.enter_context(_flocked(self._folder / _LOCK, how))
            yield

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{check_job_id(job_id)}.json"

    def _begun(self, job_id: str) -> Path:
        return self._folder / f"{_BEGUN}{self._path(job_id).name}"

    def _begun_jobs(self) -> list[Job]:
        found = map(self._read, self._folder.glob(f"{_BEGUN}job-*.json"))
        return _in_order([job for job in found if job is not None])

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


@contextmanager
def _flocked(path: Path, how: int) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing does not end it while a forked process has it open
        os.close(handle)


def _has_left(job: Job) -> bool:
    return job.status.terminal and leaves_at(job) <= time.time()


def _in_order(jobs: list[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.created_at, job.id))
