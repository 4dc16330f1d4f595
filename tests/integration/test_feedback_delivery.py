"""A batch of corrections becomes one job, whatever dies between the job's acceptance and the batch's end."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from adapter_store.datasets import DatasetStore
from adapter_store.errors import QueueUnavailable
from adapter_store.jobs import Job, JobJournal, JobQueue, JobStatus
from server.feedback.corrections import Correction
from server.feedback.desk import CorrectionsRefused, FeedbackDesk, SendingPolicy
from server.feedback.folder import TaskFolder
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
    metrics = Metrics()
    return FeedbackDesk(
        PendingStore(home / "feedback"),
        datasets=datasets,
        submissions=Submissions(lineage="strata", datasets=datasets, link=link, metrics=metrics),
        journal=journal,
        policy=SendingPolicy(count=2, seconds=0),
        metrics=metrics,
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


async def test_a_kill_before_the_job_was_accepted_and_a_lost_picture_set_nothing_aside(
    tmp_path: Path, redis_url: str, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    def die(*_: object) -> None:
        raise Killed

    here = desk(tmp_path, redis_url)
    for size in (20, 21):
        await asyncio.to_thread(here.store.keep, "animals", correction(size), png("red", size))
    monkeypatch.setattr(JobJournal, "accept", die)
    with pytest.raises(Killed):
        await here.send("animals")
    monkeypatch.undo()
    (begun,) = queue.list()
    assert JobJournal(tmp_path / "jobs").all() == []
    again = desk(tmp_path, redis_url)
    (batch,) = again.store.batches("animals")
    (tmp_path / "feedback" / "animals" / batch.name / f"{20:064x}.picture").unlink()
    assert (await again.send("animals")).id == begun.id
    assert again.store.standing("animals").count == 0
    assert [job.id for job in queue.list()] == [begun.id]


async def test_what_can_never_be_a_job_is_set_aside_and_stops_nothing(
    tmp_path: Path, redis_url: str, queue: JobQueue
):
    here = desk(tmp_path, redis_url)
    await here.take("animals", correction(20), b"no picture at all")
    with pytest.raises(CorrectionsRefused, match=r"1 corrections of animals cannot be learned .* set aside"):
        await here.send("animals")
    (aside,) = (tmp_path / "feedback" / "animals").glob("refused-*")
    assert list(aside.glob("*.picture"))
    await here.take("animals", correction(21), png("red", 21))
    assert (await here.send("animals")).dataset.examples == 1
    again = desk(tmp_path, redis_url).store.standing("animals")
    assert (again.count, again.refused) == (0, 1)
    (listed,) = here.listed()
    assert (listed["count"], listed["refused"]) == (0, 1)


async def test_two_gateways_on_one_home_make_one_job_of_a_batch(
    tmp_path: Path, redis_url: str, queue: JobQueue
):
    one, other = desk(tmp_path, redis_url), desk(tmp_path, redis_url)
    await one.take("animals", correction(20), png("red", 20))
    sent = await asyncio.gather(one.send("animals"), other.send("animals"), return_exceptions=True)
    assert sum(isinstance(item, Job) for item in sent) == 1, sent
    await other.take("animals", correction(21), png("red", 21))
    await one.take("animals", correction(22), png("red", 22))
    assert [job.dataset.examples for job in queue.list()] == [2, 1]  # the newest first
    for here in (one, other):
        await asyncio.to_thread(here.store.refresh)
        assert here.store.standing("animals").count == 0
        assert here.store.job_of("animals", correction(22).id) == queue.list()[0].id


async def test_what_a_gateway_kept_that_is_gone_is_sent_by_another(
    tmp_path: Path, redis_url: str, queue: JobQueue
):
    other = desk(tmp_path, redis_url)
    watch = asyncio.create_task(other.watch())
    leaving = PendingStore(tmp_path / "feedback")
    await asyncio.sleep(0.1)
    for size in (20, 21):
        await asyncio.to_thread(leaving.keep, "animals", correction(size), png("red", size), close_at=2)
    for _ in range(200):
        await asyncio.sleep(0.05)
        if queue.list():
            break
    watch.cancel()
    assert [job.dataset.examples for job in queue.list()] == [2]


async def test_a_batch_that_fails_keeps_back_only_what_answers_its_questions_again(
    tmp_path: Path, redis_url: str, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    here = desk(tmp_path, redis_url)
    store = here.store
    for one in (correction(20), correction(21), correction(20, "a tiger")):
        await asyncio.to_thread(store.keep, "animals", one, png("red", 20), close_at=1)
    first, picture = store.batches("animals")[0].name, TaskFolder.picture

    def out_of_handles(folder: TaskFolder, batch: str, one: Correction) -> bytes:
        if batch == first:
            raise OSError(errno.EMFILE, "Too many open files")
        return picture(folder, batch, one)

    monkeypatch.setattr(TaskFolder, "picture", out_of_handles)
    with pytest.raises(OSError, match="Too many open files"):
        await here.send("animals")
    assert [one.right for batch in store.batches("animals") for one in batch.corrections.values()] == [
        "a cat",
        "a tiger",
    ]
    assert len(queue.list()) == 1
    monkeypatch.undo()
    await here.send("animals")
    said = [here._datasets.open(job.dataset.id).examples[0].turns[0].answer for job in queue.list()]
    assert said == ["a tiger", "a cat", "a cat"]  # the newest first


async def test_a_batch_whose_picture_is_gone_is_set_aside_and_the_next_is_sent(
    tmp_path: Path, redis_url: str, queue: JobQueue
):
    here = desk(tmp_path, redis_url)
    for size in (20, 21):
        await asyncio.to_thread(here.store.keep, "animals", correction(size), png("red", size), close_at=1)
    first = here.store.batches("animals")[0]
    (tmp_path / "feedback" / "animals" / first.name / f"{20:064x}.picture").unlink()
    job = await here.send("animals")
    assert [known.id for known in queue.list()] == [job.id]
    assert here.store.standing("animals").refused == 1


async def test_a_left_over_batch_reads_the_journal_once(
    tmp_path: Path, redis_url: str, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    before = desk(tmp_path, redis_url)
    await before.take("animals", correction(20), png("red", 20))
    await asyncio.to_thread(before.store.close, "animals")
    here, read = desk(tmp_path, "redis://127.0.0.1:1"), []
    every = JobJournal.all
    monkeypatch.setattr(JobJournal, "all", lambda self: read.append(1) or every(self))
    for _ in range(3):
        with pytest.raises(QueueUnavailable):
            await here.send("animals")
    assert len(read) == 1


async def test_each_task_says_once_why_it_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    here = desk(tmp_path, "redis://127.0.0.1:1")
    for task in ("animals", "birds"):
        await asyncio.to_thread(here.store.keep, task, correction(20), png("red", 20), close_at=1)
    for _ in range(3):
        for task in ("animals", "birds"):
            here._not_before.clear()
            await here._try_to_send(task)
    said = [record for record in caplog.records if "cannot be queued now" in record.getMessage()]
    assert len(said) == 2


async def test_what_waits_too_long_and_what_was_set_aside_is_shown(tmp_path: Path, queue: JobQueue):
    here = desk(tmp_path, "redis://127.0.0.1:1")
    shown = here._metrics.registry.get_sample_value
    await here.take("animals", correction(20), png("red", 20))
    here._show()
    assert shown("strata_feedback_waiting") == 1
    assert shown("strata_feedback_oldest_seconds") == 0  # nobody asked for it to be sent yet
    assert shown("strata_feedback_refused_total") == 0
    await here.take("animals", correction(21), png("red", 21))
    here._show()
    assert shown("strata_feedback_waiting") == 2
    assert (shown("strata_feedback_oldest_seconds") or 0) > 1e9  # since one second after 1970
    (batch,) = here.store.batches("animals")
    await asyncio.to_thread(here.store.set_aside, "animals", batch, "no reason")
    for _ in range(2):
        here._show()
        assert shown("strata_feedback_waiting") == 0
        assert shown("strata_feedback_oldest_seconds") == 0
        assert shown("strata_feedback_refused_total") == 1
