"""A home folder, its queue and a worker in this process, on the tiny base."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

from PIL import Image

from adapter_store.datasets import DatasetStore, Example, Turn
from adapter_store.jobs import Job, JobQueue, connect
from adapter_store.versions import VersionStore
from trainer_worker.opening import open_workshop
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker
from trainer_worker.workshop import Workshop

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
FAST = {"epochs": 120, "learning_rate": 0.05, "batch_size": 16, "patience": 0}


class Site:
    """A home folder, its queue and a worker in this process."""

    def __init__(self, home: Path, base: Path, url: str, shop: Workshop | None = None) -> None:
        self.home = home
        self.url = url
        self.base = base
        self.settings = WorkerSettings(
            base=str(base),
            home=home,
            redis_url=url,
            lease_seconds=2,
            frozen_share=0,
            rank=4,
            rows_per_task=4,
            top_m=2,
            max_leak=1.0,
            retention_questions=4,
            min_retention=0,
        )
        self.client = connect(url)
        self.queue = JobQueue(self.client, "strata", lease_seconds=2)
        self.datasets = DatasetStore(home / "datasets")
        self.versions = VersionStore(home / "versions", "strata")
        self.stop = threading.Event()

    def flags(self) -> list[str]:
        return [
            *("--home", str(self.home), "--base", str(self.base), "--redis-url", self.url),
            *("--frozen-share", "0", "--lease-seconds", "2"),
            *("--rank", "4", "--rows-per-task", "4", "--top-m", "2"),
            *("--max-leak", "1", "--retention-questions", "4", "--min-retention", "0"),
            *("--metrics-port", "0", "--nice", "0"),
        ]

    def submit(self, task: str | None, question: str = "Which color?", count: int = 15, **hyper) -> Job:
        examples, images = [], {}
        for n in range(count):
            name = list(COLORS)[n % 3]
            red, green, blue = COLORS[name]
            buffer = io.BytesIO()
            Image.new("RGB", (28, 28), (red, green, (blue + 2 * n) % 256)).save(buffer, format="PNG")
            images[f"{n}.png"] = buffer.getvalue()
            examples.append(Example(str(n), f"{n}.png", (Turn(question, name),)))
        ref = self.datasets.put_examples(examples, images)
        job = Job(lineage="strata", task=task, dataset=ref, hyperparameters={**FAST, **hyper})
        return self.queue.submit(job)

    def worker(self, name: str = "w") -> Worker:
        return Worker(open_workshop(self.settings), self.queue, name, self.stop)

    def finish(self, job: Job, name: str = "survivor") -> Job:
        """Run a worker in this process until the job has ended."""
        worker = self.worker(name)
        deadline = time.monotonic() + 240
        while not self.queue.get(job.id).status.terminal:
            assert time.monotonic() < deadline, self.queue.get(job.id)
            worker.run_one(0.2)
        return self.queue.get(job.id)
