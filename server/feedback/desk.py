"""Send corrections that wait to the queue: at a count, at an age, or when somebody asks for it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from adapter_store.datasets import DatasetRef, DatasetStore
from adapter_store.datasets.records import Report
from adapter_store.errors import (
    ConflictError,
    DatasetError,
    InputError,
    NotFoundError,
    StrataError,
    UnavailableError,
)
from adapter_store.jobs import Job, JobJournal
from adapter_store.jobs.record import FEEDBACK, SOURCE
from server.feedback.corrections import Correction
from server.feedback.files import OF_THE_PROCESS
from server.feedback.pending import Batch, PendingStore, Standing
from server.jobs.submission import Submissions, scoped_key
from server.logs import log
from server.metrics import Metrics
from server.pools import CORRECTIONS, FILES, QUEUE

_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_LOCK_SECONDS = 10.0


class CorrectionsRefused(ConflictError):
    """Report that what waited can never be a job and was set aside."""

    code = "corrections_refused"


@dataclass(frozen=True, slots=True)
class SendingPolicy:
    """When corrections of a task become a job: at ``count`` of them, or when the oldest is ``seconds`` old.

    ``seconds`` 0 switches the age rule off.
    """

    count: int
    seconds: float


class FeedbackDesk:
    """Take corrections in and hand them on, each batch once, also beside other gateways of the home."""

    def __init__(
        self,
        store: PendingStore,
        *,
        datasets: DatasetStore,
        submissions: Submissions,
        journal: JobJournal,
        policy: SendingPolicy,
        metrics: Metrics,
    ) -> None:
        self.store = store
        self.policy = policy
        self._datasets = datasets
        self._submissions = submissions
        self._journal = journal
        self._metrics = metrics
        self._not_before: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._not_in_journal: set[str] = set()

    async def take(self, task: str, correction: Correction, picture: bytes) -> bool:
        """Keep a correction durably, and send what waits of its task if that is enough.

        Returns:
            False if the same correction waits already.
        """
        count = self.policy.count
        is_new = await CORRECTIONS.run(self.store.keep, task, correction, picture, close_at=count)
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
            CorrectionsRefused: nothing of what waited can be a job.
            UnavailableError: the queue cannot be used now; what waits is kept and tried again.
        """
        await CORRECTIONS.run(self.store.refresh, task)
        if self.store.standing(task).count:
            async with self.store.sending(task, _LOCK_SECONDS):
                await CORRECTIONS.run(self.store.refresh, task)
                if unripe or self._is_ripe(self.store.standing(task)):
                    await CORRECTIONS.run(self.store.close, task)
                job = await self._hand_in_all(task)
                if job is not None:
                    return job
        text = f"no corrections of {task[:63]!r} wait; POST /v1/feedback takes them"
        raise NotFoundError(text, param="task")

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
        """Return every task that corrections wait for, were sent for or were set aside of."""
        return [
            {"task": task, **self.pending(task), "last_job": found.last_job, "refused": found.refused}
            for task in self.store.tasks()
            for found in (self.store.standing(task),)
        ]

    async def watch(self) -> None:
        """Send what is due and try again what could not be sent, until cancelled."""
        while True:
            try:
                await CORRECTIONS.run(self.store.refresh)
                self._said.pop("", None)
            except (StrataError, OSError) as error:
                self._say("", "waiting corrections cannot be read now", error)
            for task in self.store.tasks():
                if self._is_due(self.store.standing(task)):
                    await self._try_to_send(task)
            self._show()
            await asyncio.sleep(_LOOK_SECONDS)

    def _show(self) -> None:
        """Publish how many wait, how old the oldest is that is due, and what was set aside."""
        found = [self.store.standing(task) for task in self.store.tasks()]
        due = [one.oldest for one in found if one.oldest is not None and self._is_due(one)]
        self._metrics.show_feedback(
            waiting=sum(one.count for one in found),
            oldest_seconds=max((time.time() - since for since in due), default=0.0),
            refused=self.store.take_set_aside(),
        )

    def _is_due(self, found: Standing) -> bool:
        """Tell whether something should be queued by now."""
        return found.count > found.open or self._is_ripe(found)

    def _is_ripe(self, found: Standing) -> bool:
        """Tell whether there is enough in no closed batch, or something that is old enough."""
        if found.open >= self.policy.count:
            return True
        oldest = found.oldest_open
        return bool(oldest and self.policy.seconds and time.time() - oldest >= self.policy.seconds)

    async def _try_to_send(self, task: str) -> None:
        """Send what waits, but not right after it failed; what fails is kept and tried again."""
        if self._not_before.get(task, 0.0) > time.monotonic():
            return
        try:
            await self.send(task, unripe=False)
        except (NotFoundError, CorrectionsRefused):
            pass  # it was sent meanwhile, or is set aside
        except Exception as error:  # noqa: BLE001  whatever it is, the corrections are on disk
            self._not_before[task] = time.monotonic() + _RETRY_SECONDS
            self._say(task, "corrections cannot be queued now and wait", error)
            return
        self._not_before.pop(task, None)
        self._said.pop(task, None)

    def _say(self, task: str, text: str, error: Exception) -> None:
        """Log why something of a task cannot be done, once for each reason."""
        reason = str(error)[:300]
        if self._said.get(task) != reason:
            self._said[task] = reason
            log(text, logging.WARNING, task=task, reason=reason)

    async def _hand_in_all(self, task: str) -> Job | None:
        """Hand in a task's batches, oldest first; return the last job, None without any batch.

        A batch that fails keeps back only those that correct the same questions again: the last word about
        a question must be learned last.
        """
        job: Job | None = None
        failed: Exception | None = None
        kept_back: set[str] = set()
        for batch in self.store.batches(task):
            if kept_back & batch.corrections.keys():
                kept_back |= batch.corrections.keys()
                continue
            try:
                job = await self._hand_in(task, batch)
            except UnavailableError:
                raise  # the queue is away for all of them
            except CorrectionsRefused as error:
                failed = failed or error
            except Exception as error:  # noqa: BLE001  whatever it is, others may go
                failed = error if failed is None or isinstance(failed, CorrectionsRefused) else failed
                kept_back |= batch.corrections.keys()
        if failed is not None and (kept_back or job is None):
            raise failed
        return job

    async def _hand_in(self, task: str, batch: Batch) -> Job:
        """Hand in one batch; return its job.

        Raises:
            CorrectionsRefused: it can never be a job and was set aside.
        """
        try:
            job = await self._accepted_before(task, batch)
            if job is None:
                dataset, batch = await self._stored(task, batch)
                job = await self._submit(task, batch, dataset)
        except (InputError, ConflictError) as error:  # the same again would be refused again
            log("a batch of corrections is set aside", logging.ERROR, batch=batch.name, reason=error.message)
            await CORRECTIONS.run(self.store.set_aside, task, batch, error.message)
            text = f"{len(batch.corrections)} corrections of {task} cannot be learned and are set aside"
            raise CorrectionsRefused(f"{text}: {error.message}", param="task") from None
        await CORRECTIONS.run(self.store.delivered, task, batch, job.id)
        self._not_in_journal.discard(batch.name)
        log("corrections are queued", task=task, job=job.id, corrections=len(batch.corrections))
        return job

    async def _accepted_before(self, task: str, batch: Batch) -> Job | None:
        """Return the job of a batch that another process handed in before it could note that.

        The whole journal is read for it, so only once: what is handed in from here on, Redis remembers.
        """
        if not batch.left_over or batch.name in self._not_in_journal:
            return None
        job = await QUEUE.run(self._in_journal, task, batch)
        if job is None:
            self._not_in_journal.add(batch.name)
        return job

    def _in_journal(self, task: str, batch: Batch, *, begun: bool = False) -> Job | None:
        return self._journal.of_key(scoped_key(batch.name, task), begun=begun)

    async def _submit(self, task: str, batch: Batch, dataset: DatasetRef) -> Job:
        try:
            return await self._submissions.submit(
                dataset,
                task=task,
                hyperparameters={},
                metadata={SOURCE: FEEDBACK},
                idempotency_key=batch.name,
            )
        except ConflictError:  # Redis took its job before something was taken out of the batch
            job = await QUEUE.run(self._in_journal, task, batch, begun=True)
            if job is None:
                raise
            return job

    async def _stored(self, task: str, batch: Batch) -> tuple[DatasetRef, Batch]:
        """Return a batch as a data set; what of it cannot be learned is taken out, and told by the batch.

        Raises:
            InputError: nothing of it can be learned.
        """
        images, unusable = await FILES.run(self._pictures, task, batch)
        if not unusable:
            try:
                return await FILES.run(self._put, batch, images), batch
            except DatasetError as error:
                unusable = _faulty(batch, error.report)
                if not unusable:
                    raise
        if unusable.keys() == batch.corrections.keys():
            raise InputError("; ".join(sorted(set(unusable.values()))), param="image")
        for reason in sorted(set(unusable.values())):
            log("corrections are set aside", logging.ERROR, batch=batch.name, reason=reason)
        return await self._stored(task, await CORRECTIONS.run(self.store.take_out, task, batch, unusable))

    def _pictures(self, task: str, batch: Batch) -> tuple[dict[str, bytes], dict[str, str]]:
        """Return a batch's pictures by their hash, and by key why those of others cannot be read.

        Raises:
            OSError: no file can be read now.
        """
        images: dict[str, bytes] = {}
        unusable: dict[str, str] = {}
        for key, one in batch.corrections.items():
            try:
                images[one.picture] = self.store.picture(task, batch, one)
            except FileNotFoundError:
                unusable[key] = "the file of a picture is gone"
            except OSError as error:
                if error.errno in OF_THE_PROCESS:
                    raise
                unusable[key] = f"the file of a picture cannot be read: {error.strerror}"
        return images, unusable

    def _put(self, batch: Batch, images: dict[str, bytes]) -> DatasetRef:
        examples = [
            {"id": one.id, "image": one.picture, "question": one.question, "answer": one.right}
            for one in _in_order(batch)
        ]
        return self._datasets.put_examples(examples, images, filename="feedback.json")


def _in_order(batch: Batch) -> list[Correction]:
    return sorted(batch.corrections.values(), key=lambda one: one.key)


def _faulty(batch: Batch, report: Report) -> dict[str, str]:
    """Return by key why corrections are refused; empty if some fault is of none of them."""
    corrections, found = _in_order(batch), {}
    for fault in report.faults:
        if fault.element is None:
            return {}
        found[corrections[fault.element].key] = fault.reason
    return found
