"""Send corrections that wait to the queue: at a count, at an age, or when somebody asks for it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from adapter_store.datasets import DatasetRef, DatasetStore
from adapter_store.errors import ConflictError, InputError, NotFoundError
from adapter_store.jobs import Job, JobJournal
from adapter_store.jobs.record import FEEDBACK, SOURCE
from server.feedback.corrections import Correction
from server.feedback.pending import Batch, PendingStore
from server.jobs.submission import Submissions, scoped_key
from server.logs import log
from server.pools import DATASETS, FILES, QUEUE

_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class SendingPolicy:
    """When corrections of a task become a job: at ``count`` of them, or when the oldest is ``seconds`` old.

    ``seconds`` 0 switches the age rule off.
    """

    count: int
    seconds: float


class FeedbackDesk:
    """Take corrections in and hand them on, each batch exactly once."""

    def __init__(
        self,
        store: PendingStore,
        *,
        datasets: DatasetStore,
        submissions: Submissions,
        journal: JobJournal,
        policy: SendingPolicy,
    ) -> None:
        self.store = store
        self.policy = policy
        self._datasets = datasets
        self._submissions = submissions
        self._journal = journal
        self._sending: dict[str, asyncio.Lock] = {}
        self._waits: dict[str, float] = {}
        self._said: str | None = None

    async def take(self, task: str, correction: Correction, picture: bytes) -> bool:
        """Keep a correction durably, and send what waits of its task if that is enough.

        Returns:
            False if the same correction waits already.
        """
        count = self.policy.count
        is_new = await FILES.run(self.store.keep, task, correction, picture, close_at=count)
        found = self.store.standing(task)
        if found.count > found.open:
            await self._try_to_send(task)
        return is_new

    async def send(self, task: str, *, unripe: bool = True) -> Job:
        """Hand in what waits of a task; return the last job.

        Args:
            task: its name.
            unripe: also what the policy would let wait longer.

        Raises:
            NotFoundError: nothing waits.
            UnavailableError: the queue cannot be used now; what waits is kept and tried again.
        """
        job = None
        if self.store.standing(task).count:
            async with self._sending.setdefault(task, asyncio.Lock()):
                if unripe or self._is_ripe(task):
                    await FILES.run(self.store.close, task)
                for batch in self.store.batches(task):
                    job = await self._hand_in(task, batch) or job
        if job is None:
            text = f"no corrections of {task[:63]!r} wait; POST /v1/feedback takes them"
            raise NotFoundError(text, param="task")
        return job

    def pending(self, task: str | None) -> dict[str, Any]:
        """Return how it stands with a task's corrections, as HTTP shows it."""
        found = None if task is None else self.store.standing(task)
        oldest = None if found is None else found.oldest
        return {
            "count": 0 if found is None else found.count,
            "oldest_seconds": 0.0 if oldest is None else round(max(0.0, time.time() - oldest), 3),
            "sent_at_count": self.policy.count,
            "sent_after_seconds": self.policy.seconds,
        }

    def listed(self) -> list[dict[str, Any]]:
        """Return every task that corrections wait for or were sent for."""
        return [
            {"task": task, **self.pending(task), "last_job": self.store.standing(task).last_job}
            for task in self.store.tasks()
        ]

    async def watch(self) -> None:
        """Send what is due and try again what could not be sent, until cancelled."""
        while True:
            for task in self.store.tasks():
                found = self.store.standing(task)
                if found.count > found.open or self._is_ripe(task):
                    await self._try_to_send(task)
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_ripe(self, task: str) -> bool:
        """Tell whether there is enough in no closed batch, or something that is old enough."""
        if self.store.standing(task).open >= self.policy.count:
            return True
        oldest = self.store.oldest_open(task)
        return bool(oldest and self.policy.seconds and time.time() - oldest >= self.policy.seconds)

    async def _try_to_send(self, task: str) -> None:
        """Send what waits, but not right after it failed; what fails is kept and tried again."""
        if self._waits.get(task, 0.0) > time.monotonic():
            return
        try:
            await self.send(task, unripe=False)
        except NotFoundError:
            pass  # it was sent meanwhile
        except Exception as error:  # noqa: BLE001  whatever it is, the corrections are on disk
            self._waits[task] = time.monotonic() + _RETRY_SECONDS
            reason = str(error)[:300]
            if reason != self._said:
                self._said = reason
                log("corrections cannot be queued now and wait", logging.WARNING, task=task, reason=reason)
        else:
            self._waits.pop(task, None)
            self._said = None

    async def _hand_in(self, task: str, batch: Batch) -> Job | None:
        """Hand in one batch; return its job, or None if it can never be one."""
        try:
            job = await QUEUE.run(self._accepted_before, task, batch) if batch.left_over else None
            if job is None:
                job = await self._submissions.submit(
                    await DATASETS.run(self._put, task, batch),
                    task=task,
                    hyperparameters={},
                    metadata={SOURCE: FEEDBACK},
                    idempotency_key=batch.name,
                )
        except (InputError, ConflictError) as error:  # the same again would be refused again
            log("a batch of corrections is set aside", logging.ERROR, batch=batch.name, reason=error.message)
            await FILES.run(self.store.set_aside, task, batch)
            return None
        await FILES.run(self.store.delivered, task, batch, job.id)
        log("corrections are queued", task=task, job=job.id, corrections=len(batch.corrections))
        return job

    def _accepted_before(self, task: str, batch: Batch) -> Job | None:
        """Return the job of a batch that an earlier process handed in before it could note that."""
        key = scoped_key(batch.name, task)
        return next((job for job in self._journal.all() if job.idempotency_key == key), None)

    def _put(self, task: str, batch: Batch) -> DatasetRef:
        corrections = sorted(batch.corrections.values(), key=lambda one: one.key)
        images = {one.picture: self.store.picture(task, batch, one) for one in corrections}
        examples = [
            {"id": one.id, "image": one.picture, "question": one.question, "answer": one.right}
            for one in corrections
        ]
        return self._datasets.put_examples(examples, images, filename="feedback.json")
