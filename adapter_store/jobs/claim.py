"""A worker's hold on one job: heartbeat, fenced updates, fenced finish.

Everything a worker writes goes through its claim, and every write is refused once a
newer claim exists. A worker that was frozen and wakes up late can therefore not
overwrite the result of the one that took over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adapter_store.errors import InputError, QueueUnavailable
from adapter_store.jobs import scripts
from adapter_store.jobs.connection import guarded
from adapter_store.jobs.keys import GROUP
from adapter_store.jobs.ledger import Ledger, encode_fields, lost
from adapter_store.jobs.record import EventLevel, EventType, Job, JobStatus


class Claim:
    """Hold one job under one fencing token.

    Attributes:
        job: The job as it was when claimed, or after the latest ``update``/``finish``.
        fence: The token; it only grows along a lineage, also when Redis loses its data
            (it follows the clock), and is what ``VersionStore.publish`` wants.
    """

    def __init__(
        self, ledger: Ledger, job: Job, *, fence: int, entry: str, worker: str, lease_seconds: float
    ) -> None:
        self.job = job
        self.fence = fence
        self.lease_seconds = lease_seconds
        self._ledger = ledger
        self._entry = entry
        self._worker = worker

    def heartbeat(self) -> bool:
        """Renew the lease; False means that it is lost and work has to stop.

        A lease that ran out while nobody took over is taken up again.

        Raises:
            QueueUnavailable: Redis does not answer; the lease may still be held.
        """
        with guarded(f"renew the lease on job {self.job.id}"):
            return self._ledger.run(scripts.HEARTBEAT, self._keys(), self._lease_arguments()) == 1

    @contextmanager
    def kept_alive(self) -> Iterator[threading.Event]:
        """Renew the lease from a thread, three times per lease; the event is set once it is lost.

        While Redis does not answer, the event stays clear: whether the claim is still
        current is decided at the next write.
        """
        gone, done = threading.Event(), threading.Event()

        def beat() -> None:
            while not done.wait(self.lease_seconds / 3):
                try:
                    held = self.heartbeat()
                except QueueUnavailable:
                    continue
                if not held:
                    gone.set()
                    return

        thread = threading.Thread(target=beat, name=f"lease-{self.job.id}", daemon=True)
        thread.start()
        try:
            yield gone
        finally:
            done.set()
            thread.join()

    def update(self, **fields: Any) -> Job:
        """Change fields of the job and return it; raise LeaseLost if a newer claim exists."""
        self.job = self._ledger.update(self.job.id, self.fence, fields)
        return self.job

    def event(
        self,
        message: str,
        *,
        level: EventLevel = "info",
        type: EventType = "message",  # noqa: A002 - the word of the OpenAI event record
        data: dict[str, Any] | None = None,
    ) -> str:
        """Append a progress event and return its id; raise LeaseLost if a newer claim exists."""
        return self._ledger.append_event(self.job.id, self.fence, message, level, type, data)

    def is_cancelled(self) -> bool:
        """Tell whether the job was asked to stop."""
        return self._ledger.is_cancelled(self.job.id)

    def finish(self, status: JobStatus | str, **fields: Any) -> Job:
        """Write the outcome, acknowledge and free the lineage in one step; return the finished job.

        Repeating it after a lost answer changes nothing.

        Raises:
            InputError: ``status`` does not end a job.
            LeaseLost: A newer claim exists; nothing was written.
            QueueUnavailable: Redis does not answer; try again.
        """
        ended = JobStatus(status)
        if not ended.terminal:
            raise InputError(
                f"a job cannot finish as {ended}: use succeeded, failed or cancelled", param="status"
            )
        over = {"finished_at": time.time(), "phase": None, "estimated_finish": None}
        flat = encode_fields({**over, **fields, "status": ended})
        with guarded(f"finish job {self.job.id}"):
            answer = self._ledger.run(scripts.FINISH, self._keys(), [GROUP, self._entry, self.fence, *flat])
        if answer != "ok":
            raise lost(self.job.id)
        self.job = self._ledger.get(self.job.id)
        return self.job

    def release(self) -> bool:
        """Give the job back so that the next claim gets it at once; this attempt is not counted.

        For a worker that shuts down. False: the lease was lost before.
        """
        with guarded(f"give back job {self.job.id}"):
            return self._ledger.run(scripts.RELEASE, self._keys(), self._lease_arguments()) == 1

    def _keys(self) -> list[str]:
        keys = self._ledger.keys
        return [keys.job(self.job.id), keys.stream, keys.fence, keys.writer]

    def _lease_arguments(self) -> list[str | int]:
        return [GROUP, self._worker, self._entry, self.fence, int(self.lease_seconds * 1000)]
