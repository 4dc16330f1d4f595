"""The parts that every run shares: Redis, data sets, and a workshop for each kind of base settings."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapter_store.datasets import Dataset, DatasetStore
from adapter_store.errors import StrataError
from adapter_store.jobs import Job, JobQueue, connect
from adapter_store.jobs.record import JobStatus
from adapter_store.redis_server import RedisServer
from adapter_store.versions import STABLE, Manifest, VersionStore
from trainer_worker.heldout import HeldOut
from trainer_worker.opening import defaults_of, method_of, open_workshop
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker
from trainer_worker.workshop import Workshop


class Site:
    """A home folder with a real Redis; hands out workshops and lineages of versions."""

    def __init__(self, home: Path, redis_url: str, settings: Mapping[str, Any]) -> None:
        self.home = home
        self.datasets = DatasetStore(home / "datasets")
        self._url = redis_url
        self._settings = {**settings, "home": home, "redis_url": redis_url}
        self._shops: dict[str, Workshop] = {}

    @classmethod
    @contextmanager
    def open(cls, home: Path, settings: Mapping[str, Any]) -> Iterator[Site]:
        """Start Redis in ``home`` and stop it at the end."""
        home.mkdir(parents=True, exist_ok=True)
        with RedisServer.start(home) as server:
            yield cls(home, server.url, settings)

    def shop(self, lineage: str, changes: Mapping[str, Any]) -> Workshop:
        """Return a workshop with some settings changed, for one lineage; other targets load another base."""
        settings = WorkerSettings(**{**self._settings, **changes})
        if settings.targets not in self._shops:
            self._shops.clear()  # one base in memory at a time
            self._shops[settings.targets] = open_workshop(settings)
        shop = self._shops[settings.targets]
        held_out = HeldOut(
            self.home / "heldout" / lineage,
            ratio=settings.holdout_ratio,
            cap=settings.holdout_cap,
            max_chance=settings.max_chance,
        )
        versions = VersionStore(self.home / "versions", lineage)
        return dataclasses.replace(
            shop,
            versions=versions,
            held_out=held_out,
            method=method_of(settings),
            defaults=defaults_of(settings),
        )

    def lineage(self, shop: Workshop, name: str) -> Lineage:
        """Return the queue and the worker of one lineage."""
        return Lineage(shop, JobQueue(connect(self._url), name, lease_seconds=60), name)


class Lineage:
    """One line of versions: jobs go through the queue, a worker of this process learns from them."""

    def __init__(self, shop: Workshop, queue: JobQueue, name: str) -> None:
        self.shop = shop
        self._queue = queue
        self._name = name
        self._worker = Worker(shop, queue, name, threading.Event())

    def teach(self, task: str, dataset: Dataset, hyperparameters: Mapping[str, Any]) -> Manifest:
        """Submit a data set as a job, run it to its end, and make its version ``stable`` in any case.

        A stream goes on where an operator would stop and look: what the gate said stands in the manifest.

        Raises:
            StrataError: the job did not succeed.
        """
        job = Job(lineage=self._name, task=task, dataset=dataset.ref, hyperparameters=dict(hyperparameters))
        job = self._queue.submit(job)
        while not self._queue.get(job.id).status.terminal:
            self._worker.run_one(1.0)
        job = self._queue.get(job.id)
        if job.status is not JobStatus.SUCCEEDED or job.result_version is None:
            reason = job.error.message if job.error else str(job.status)
            raise StrataError(f"the job for {task} did not succeed: {reason}")
        manifest = self.shop.versions.manifest(job.result_version)
        aliases = self.shop.versions.aliases
        record = aliases.get(STABLE)
        if record is None or record.version != manifest.version:
            revision = record.revision if record else 0
            aliases.move(
                STABLE, manifest.version, expected_revision=revision, reason="benchmark", actor="benchmark"
            )
        return manifest
