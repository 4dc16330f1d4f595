"""A batch of corrections becomes one job, whatever dies between the job's acceptance and the batch's end."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter_store.datasets import DatasetStore
from adapter_store.errors import NotFoundError, QueueUnavailable
from adapter_store.jobs import Job, JobJournal, JobQueue, JobStatus
from server.feedback.corrections import Correction
from server.feedback.desk import FeedbackDesk, SendingPolicy
from server.feedback.pending import PendingStore
from server.jobs.link import QueueLink, RedisPlace
from server.jobs.submission import Submissions
from server.metrics import Metrics
from tests.contract.pictures import png


class Killed(BaseException):
    """Stands for the end of the process at one place."""


def desk(home: Path, url: str) -> FeedbackDesk:
    """Return a desk as a new process has it."""
    journal = JobJournal(home / "jobs")
    datasets = DatasetStore(home / "datasets")
    link = QueueLink(RedisPlace(url, home), "strata", journal)
    return FeedbackDesk(
        PendingStore(home / "feedback"),
        datasets=datasets,
        submissions=Submissions(lineage="strata", datasets=datasets, link=link, metrics=Metrics()),
        journal=journal,
        policy=SendingPolicy(count=2, seconds=0),
    )


def correction(size: int, right: str = "a cat") -> Correction:
    return Correction("What is shown?", right, f"{size:064x}", "a dog", "down", None, None, 1.0)


async def killed_while_sending(here: FeedbackDesk, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Die right before ``place`` of the store is done."""

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(PendingStore, place, die)
    await here.take("animals", correction(20), png("red", 20))
    with pytest.raises(Killed):
        await here.send("animals")
    monkeypatch.undo()


async def test_a_kill_after_the_job_was_accepted_trains_nothing_twice(
    tmp_path: Path, redis_url: str, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    await killed_while_sending(desk(tmp_path, redis_url), monkeypatch, "delivered")
    (accepted,) = queue.list()
    again = desk(tmp_path, redis_url)
    assert again.store.standing("animals").count == 1
    assert (await again.send("animals")).id == accepted.id
    assert [job.id for job in queue.list()] == [accepted.id]
    assert again.store.standing("animals").count == 0


async def test_also_if_redis_forgot_the_job_that_has_ended_meanwhile(
    tmp_path: Path, redis_url: str, queue: JobQueue, redis_client, monkeypatch: pytest.MonkeyPatch
):
    await killed_while_sending(desk(tmp_path, redis_url), monkeypatch, "delivered")
    (accepted,) = queue.list()
    ended = accepted.model_copy(update={"status": JobStatus.SUCCEEDED, "result_version": "v1"})
    JobJournal(tmp_path / "jobs").record(ended)
    redis_client.flushall()
    assert (await desk(tmp_path, redis_url).send("animals")).id == accepted.id
    assert queue.list() == []


async def test_a_kill_before_anything_was_accepted_loses_nothing(
    tmp_path: Path, redis_url: str, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    await killed_while_sending(desk(tmp_path, redis_url), monkeypatch, "picture")
    assert queue.list() == []
    job = await desk(tmp_path, redis_url).send("animals")
    assert [known.id for known in queue.list()] == [job.id]
    assert job.corrects
    assert job.task == "animals"


async def test_an_acceptance_whose_answer_was_lost_is_one_job(
    tmp_path: Path, redis_url: str, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    submit = JobQueue.submit

    def lost(self: JobQueue, job: Job) -> Job:
        submit(self, job)
        raise QueueUnavailable("Redis took the job and its answer was lost")

    def silent(_: JobQueue, job_id: str) -> Job:
        raise QueueUnavailable(f"Redis does not tell of {job_id}")

    here = desk(tmp_path, redis_url)
    await here.take("animals", correction(20), png("red", 20))
    monkeypatch.setattr(JobQueue, "submit", lost)
    monkeypatch.setattr(JobQueue, "get", silent)
    with pytest.raises(QueueUnavailable):
        await here.send("animals")
    monkeypatch.undo()
    await here.take("animals", correction(21), png("red", 21))
    last = await here.send("animals")
    jobs = queue.list()
    assert [job.dataset.examples for job in jobs] == [1, 1]
    assert jobs[0].id == last.id
    assert all(JobJournal(tmp_path / "jobs").get(job.id) for job in jobs)


async def test_what_can_never_be_a_job_is_set_aside_and_stops_nothing(
    tmp_path: Path, redis_url: str, queue: JobQueue
):
    here = desk(tmp_path, redis_url)
    await here.take("animals", correction(20), b"no picture at all")
    with pytest.raises(NotFoundError):
        await here.send("animals")
    (aside,) = (tmp_path / "feedback" / "animals").glob("refused-*")
    assert list(aside.glob("*.picture"))
    await here.take("animals", correction(21), png("red", 21))
    assert (await here.send("animals")).dataset.examples == 1
    assert desk(tmp_path, redis_url).store.standing("animals").count == 0
