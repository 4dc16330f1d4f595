"""Hold a claimed job through outages of Redis: what can be missed is missed, the outcome is not.

Learning needs nothing from Redis, so an outage costs no training. Whether the claim is still current is
decided where it matters: by the fence when a version is published, and by Redis when the outcome is written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from adapter_store.errors import QueueUnavailable
from adapter_store.jobs.claim import Claim
from adapter_store.jobs.record import EventLevel, EventType, Job, JobStatus
from trainer_worker.progress import Interrupted

log = logging.getLogger("strata.worker")

CANCEL_POLL_SECONDS = 1.0
RETRY_SECONDS = (1.0, 2.0, 5.0)
"""Waits between attempts that have to succeed; the last one repeats."""
QUIET_TIMES, QUIET_SECONDS = 9, (1.0, 60.0)
"""After a call that failed, Redis is left alone for nine times as long as the call took, within bounds: one
that lets every call time out costs a tenth of the time."""
CANCELLED, LOST, STOPPING = "cancelled", "lease lost", "stopping"

ResultT = TypeVar("ResultT")


class Hold:
    """The worker's side of one claim.

    Args:
        claim: the claim, kept alive by its heartbeat.
        lost: set once the lease is known to be another worker's.
        stop: set when the process is asked to stop.
        alive: called at every sign of life.
    """

    def __init__(
        self,
        claim: Claim,
        lost: threading.Event,
        stop: threading.Event,
        *,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._claim = claim
        self._lost = lost
        self._stop = stop
        self._alive = alive
        self._asked = float("-inf")
        self._quiet_until = float("-inf")
        self._away = False
        self._untold: dict[str, Any] = {}

    @property
    def job(self) -> Job:
        """Return the job as far as Redis told."""
        return self._claim.job

    @property
    def fence(self) -> int:
        """Return the claim's token, for publishing."""
        return self._claim.fence

    def check(self) -> None:
        """Return if the work may go on.

        Raises:
            Interrupted: the job was cancelled, the lease is lost or the process stops.
        """
        self._alive()
        if self._lost.is_set():
            raise Interrupted(LOST)
        if self._stop.is_set():
            raise Interrupted(STOPPING)
        now = time.monotonic()
        if now - self._asked >= CANCEL_POLL_SECONDS:
            self._asked = now
            if self._if_there(self._claim.is_cancelled):
                raise Interrupted(CANCELLED)

    def event(
        self,
        message: str,
        *,
        level: EventLevel = "info",
        type: EventType = "message",  # noqa: A002 - the word of the OpenAI event record
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a progress event; while Redis is away it is dropped. Raises LeaseLost."""
        self._if_there(lambda: self._claim.event(message, level=level, type=type, data=dict(data or {})))

    def update(self, **fields: Any) -> None:
        """Change fields of the job; while Redis is away they wait for the next update. Raises LeaseLost."""
        self._untold |= fields
        if self._if_there(lambda: self._claim.update(**self._untold)) is not None:
            self._untold = {}

    def finish(self, status: JobStatus, **fields: Any) -> None:
        """Write the outcome, however long Redis is away.

        Raises:
            LeaseLost: another worker has the job.
            QueueUnavailable: Redis is away and the process is asked to stop; the next worker ends the job.
        """
        attempt = 0
        while True:
            self._alive()
            try:
                self._claim.finish(status, **fields)
                return
            except QueueUnavailable as error:
                wait = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
                attempt += 1
                log.warning("%s; trying again in %.0f s", error.message, wait)
                if self._stop.wait(wait):
                    raise

    def release(self) -> None:
        """Hand the job back. Raises QueueUnavailable; then it is handed out when the lease has run out."""
        self._claim.release()

    def _if_there(self, call: Callable[[], ResultT]) -> ResultT | None:
        """Return the answer, None while Redis is away."""
        began = time.monotonic()
        if began < self._quiet_until:
            return None
        try:
            answer = call()
        except QueueUnavailable as error:
            now = time.monotonic()
            least, most = QUIET_SECONDS
            self._quiet_until = now + min(max(least, QUIET_TIMES * (now - began)), most)
            if not self._away:
                log.warning("%s; job %s goes on without telling how far it is", error.message, self.job.id)
            self._away = True
            return None
        if self._away:
            log.info("Redis is back; job %s went on meanwhile", self.job.id)
        self._away = False
        return answer
