"""The loop of a worker process: claim a job, keep its lease alive, run it, say how it ended.

A job leaves this loop in one of three ways: finished (succeeded, failed or cancelled), handed back (the
process is asked to stop), or lost (another worker holds it now; this one notices and drops it).
"""

from __future__ import annotations

import logging
import threading
import time

from adapter_store.errors import (
    FencedOut,
    LeaseLost,
    StoreError,
    StrataError,
    UnavailableError,
)
from adapter_store.jobs.queue import JobQueue
from adapter_store.jobs.record import JobError, JobStatus
from trainer_worker.hold import CANCELLED, RETRY_SECONDS, STOPPING, Hold
from trainer_worker.pipeline import run_job
from trainer_worker.progress import Interrupted
from trainer_worker.workshop import Workshop

log = logging.getLogger("strata.worker")

CLAIM_BLOCK_SECONDS = 1.0
OUTAGE_SECONDS = (5.0, 10.0, 20.0, 60.0)
"""Waits after faults of store or disk in a row; the last one repeats."""
PATIENCE_SECONDS = 3600.0
"""So long a job that meets such faults is handed back uncounted; after that its attempts count."""


class Worker:
    """Run jobs of one queue, one at a time, until ``stop`` is set."""

    def __init__(self, shop: Workshop, queue: JobQueue, name: str, stop: threading.Event) -> None:
        self._shop = shop
        self._queue = queue
        self._name = name
        self._stop = stop
        self._troubled: dict[str, tuple[float, int]] = {}  # job -> since when, how many faults in a row

    def run(self) -> None:
        """Claim and run jobs until asked to stop; wait and try again while Redis is away."""
        failures = 0
        while not self._stop.is_set():
            self._shop.metrics.alive()
            try:
                self.run_one(CLAIM_BLOCK_SECONDS)
                failures = 0
            except UnavailableError as error:
                wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                log.warning("%s; trying again in %.0f s", error.message, wait)
                self._stop.wait(wait)

    def run_one(self, block_seconds: float) -> bool:
        """Claim and run at most one job; return whether there was one."""
        claim = self._queue.claim(self._name, block_seconds)
        if claim is None:
            return False
        metrics = self._shop.metrics
        metrics.busy.set(1)
        if claim.job.attempts > 1:
            metrics.redeliveries.inc()
        log.info("job %s claimed, attempt %d", claim.job.id, claim.job.attempts)
        try:
            with claim.kept_alive() as lost:
                self._run(Hold(claim, lost, self._stop, alive=metrics.alive))
        finally:
            metrics.busy.set(0)
        return True

    def _run(self, hold: Hold) -> None:
        job_id = hold.job.id
        try:
            version = run_job(self._shop, hold)
            self._troubled.clear()
            self._count(JobStatus.SUCCEEDED)
            log.info("job %s succeeded: %s", job_id, version)
        except Interrupted as interruption:
            self._leave(hold, interruption.reason)
        except (LeaseLost, FencedOut) as error:
            log.warning("job %s is another worker's now: %s", job_id, error.message)
        except UnavailableError:
            # The process stops while Redis is away: the lease runs out and the job is delivered again.
            raise
        except (OSError, StoreError) as error:
            self._put_off(hold, error)
        except StrataError as error:
            self._fail(hold, JobError(code=error.code, message=error.message, param=error.param))
        except Exception:
            log.exception("job %s failed unexpectedly", job_id)
            message = "the trainer failed unexpectedly; the worker's log has the details"
            self._fail(hold, JobError(code="internal_error", message=message))

    def _leave(self, hold: Hold, reason: str) -> None:
        log.info("job %s left: %s", hold.job.id, reason)
        try:
            if reason == CANCELLED:
                hold.finish(JobStatus.CANCELLED)
                self._count(JobStatus.CANCELLED)
            elif reason == STOPPING:
                hold.event(
                    "the worker stops; the job is handed back and starts again elsewhere", level="warn"
                )
                hold.release()
        except LeaseLost as error:
            log.warning("job %s: %s", hold.job.id, error.message)

    def _put_off(self, hold: Hold, error: OSError | StoreError) -> None:
        """Hand back a job whose store or disk failed, and wait: an outage must not use up its attempts."""
        job = hold.job.id
        since, faults = self._troubled.get(job, (time.monotonic(), 0))
        self._troubled[job] = (since, faults + 1)
        wait = OUTAGE_SECONDS[min(faults, len(OUTAGE_SECONDS) - 1)]
        log.warning("job %s met a fault of store or disk; again in %.0f s", job, wait, exc_info=error)
        try:
            hold.event(f"a fault of store or disk, to be tried again: {error}"[:1000], level="warn")
            if time.monotonic() - since < PATIENCE_SECONDS:
                hold.release()
        except LeaseLost as lost:
            log.warning("job %s: %s", job, lost.message)
            return
        self._stop.wait(wait)

    def _fail(self, hold: Hold, error: JobError) -> None:
        log.warning("job %s failed: %s", hold.job.id, error.message)
        try:
            hold.event(error.message, level="error", data={"code": error.code})
            hold.finish(JobStatus.FAILED, error=error)
            self._count(JobStatus.FAILED)
        except LeaseLost as lost:
            log.warning("job %s: %s", hold.job.id, lost.message)

    def _count(self, status: JobStatus) -> None:
        self._shop.metrics.jobs.labels(str(status)).inc()
