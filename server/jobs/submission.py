"""Take a job on: the data set on disk, the job in the journal, then in the stream; only then say yes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_store.datasets import DatasetRef, DatasetStore
from adapter_store.errors import DatasetError, InputError, NotFoundError, QueueUnavailable, StrataError
from adapter_store.jobs import Job, JobQueue
from adapter_store.jobs.record import Setting
from server.jobs.link import QueueLink
from server.jobs.protocol import OWN_PREFIX
from server.metrics import Metrics
from server.pools import DATASETS, QUEUE

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_MAX_METADATA = 16


class Submissions:
    """Accept training jobs of one lineage."""

    def __init__(self, *, lineage: str, datasets: DatasetStore, link: QueueLink, metrics: Metrics) -> None:
        self._lineage = lineage
        self._datasets = datasets
        self._link = link
        self._metrics = metrics

    async def submit_file(
        self,
        path: Path,
        filename: str,
        *,
        task: str | None,
        hyperparameters: Mapping[str, Setting],
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        adapter: str | None = None,
        question: str | None = None,
    ) -> Job:
        """Validate and keep the data of ``path``, then queue a job that learns it.

        With ``adapter``, a stored LoRA, nothing is learned: the LoRA becomes the task, measured on the data.
        ``question`` is asked where the data has none.

        Raises:
            DatasetError: with the report of every fault.
            QueueUnavailable: Redis cannot be reached; nothing was accepted. If Redis took the job and then
                neither its answer nor the job's record could be read, it runs all the same.
            ConflictError: the Idempotency-Key was used for another request.
        """
        await QUEUE.run(self._link.queue)  # refuse before the long validation if nothing can be queued
        try:
            ref = await DATASETS.run(
                self._datasets.put, path, filename=filename, question=question, task=task
            )
        except DatasetError:
            self._metrics.submissions.labels("invalid").inc()
            raise
        return await self.submit(
            ref,
            task=task,
            hyperparameters=hyperparameters,
            metadata=metadata,
            idempotency_key=idempotency_key,
            adapter=adapter,
        )

    async def submit(
        self,
        dataset: DatasetRef,
        *,
        task: str | None,
        hyperparameters: Mapping[str, Setting],
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        adapter: str | None = None,
    ) -> Job:
        """Queue a job for a stored data set; raises as ``submit_file``."""
        job = Job(
            lineage=self._lineage,
            task=task,
            dataset=dataset,
            adapter=adapter,
            hyperparameters=dict(hyperparameters),
            metadata=dict(metadata or {}),
            idempotency_key=scoped_key(idempotency_key, task),
        )
        try:
            accepted = await QUEUE.run(self._hand_in, job)
        except StrataError as error:
            self._metrics.submissions.labels(error.code).inc()
            raise
        self._metrics.submissions.labels("accepted" if accepted.id == job.id else "repeated").inc()
        return accepted

    def _hand_in(self, job: Job) -> Job:
        queue = self._link.queue()
        journal = self._link.journal
        with journal.handed_in():
            journal.begin(job)
            try:
                accepted = queue.submit(job)
            except QueueUnavailable:
                accepted = self._taken_all_the_same(queue, job)
                if accepted is None:
                    journal.doubt(job.id)
                    raise
            except Exception:
                # The client hears a refusal, so the journal must not hand the job in later.
                journal.forget(job.id)
                raise
            if accepted.id == job.id:
                journal.accept(job.id)
            else:
                # The request that this one repeats may have been refused after Redis had taken its job.
                journal.record(accepted)
                journal.forget(job.id)
            return accepted

    def _taken_all_the_same(self, queue: JobQueue, job: Job) -> Job | None:
        """Return the job if Redis took it and only its answer was lost; None: it did not, or does not say."""
        try:
            return queue.get(job.id)
        except (NotFoundError, QueueUnavailable):
            return None


def scoped_key(key: str | None, task: str | None) -> str | None:
    """Return the Idempotency-Key as the queue keeps it: hashed, and apart for each task.

    Raises:
        InputError: longer than 255 characters or not printable ASCII.
    """
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InputError(
            "Idempotency-Key must be 1 to 255 printable ASCII characters", param="Idempotency-Key"
        )
    return hashlib.sha256(f"{task or ''}\n{key}".encode()).hexdigest()


def checked_metadata(given: Mapping[str, Any] | None) -> dict[str, str]:
    """Return metadata as the OpenAI API bounds it: 16 pairs, keys to 64 and values to 512 characters."""
    pairs = dict(given or {})
    if len(pairs) > _MAX_METADATA:
        raise InputError(
            f"metadata has {len(pairs)} pairs; at most {_MAX_METADATA} are kept", param="metadata"
        )
    for key, value in pairs.items():
        if key.startswith(OWN_PREFIX):
            raise InputError(f"metadata keys may not begin with {OWN_PREFIX!r}", param="metadata")
        if len(key) > 64 or not isinstance(value, str) or len(value) > 512:
            raise InputError(
                "metadata keys have at most 64, text values at most 512 characters", param="metadata"
            )
    return pairs
