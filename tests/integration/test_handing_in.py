"""Between journal and Redis: what was accepted is never lost, what was refused never runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from adapter_store.datasets import DatasetStore
from adapter_store.errors import QueueUnavailable
from adapter_store.jobs import Job, JobJournal, JobQueue, JobStatus
from server.jobs.link import QueueLink, RedisPlace
from server.jobs.submission import Submissions, scoped_key
from server.metrics import Metrics
from tests.integration.queueing import REF, job, taken

JOURNALS = """
import sys
from pathlib import Path
from adapter_store.jobs import Job, JobJournal

journal, job = JobJournal(Path(sys.argv[1])), Job.model_validate_json(sys.argv[2])
with journal.handed_in():
    journal.begin(job)
    print("recorded", flush=True)
    sys.stdin.readline()
    journal.forget(job.id)
"""


@contextmanager
def handing_in(one: Job, home: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has begun to hand in a job and refuses it once it reads a line."""
    command = [sys.executable, "-c", JOURNALS, str(home / "jobs"), one.model_dump_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "recorded\n"
        yield process


@pytest.fixture
def journal(tmp_path: Path) -> JobJournal:
    return JobJournal(tmp_path / "jobs")


@pytest.fixture
def link(redis_url: str, tmp_path: Path, journal: JobJournal) -> QueueLink:
    return QueueLink(RedisPlace(redis_url, tmp_path), "strata", journal)


def unavailable(*_: object) -> Job:
    raise QueueUnavailable("the answer was lost")


def queued(queue: JobQueue) -> list[str]:
    return [one.id for one in queue.list()]


def kept(journal: JobJournal) -> list[str]:
    return [one.id for one in journal.all()]


def submitted(link: QueueLink, folder: Path, key: str | None = None) -> Job:
    """Send a job as the gateway does for a request."""
    datasets = DatasetStore(folder / "datasets")
    door = Submissions(lineage="strata", datasets=datasets, link=link, metrics=Metrics())
    return asyncio.run(door.submit(REF, task=None, hyperparameters={}, idempotency_key=key))


class TestRepeatedRequests:
    def test_the_one_that_redis_took_counts_also_when_an_older_one_was_recorded(
        self, queue: JobQueue, redis_client: redis.Redis, journal: JobJournal
    ) -> None:
        """The gateway is killed before it submits; the repetition of the request is accepted."""
        killed, accepted = job(created_at=1.0, idempotency_key="k"), job(created_at=2.0, idempotency_key="k")
        journal.record(killed)
        journal.record(accepted)
        queue.submit(accepted)
        assert journal.reconcile(queue) == 0
        assert kept(journal) == [accepted.id]
        redis_client.flushall()
        assert journal.reconcile(queue) == 1
        assert queued(queue) == kept(journal) == [accepted.id]

    @pytest.mark.parametrize("ended", [False, True])
    def test_the_one_that_only_redis_has_is_written_down(
        self, queue: JobQueue, journal: JobJournal, ended: bool
    ) -> None:
        recorded, accepted = job(idempotency_key="k"), job(idempotency_key="k")
        queue.submit(accepted)
        if ended:
            taken(queue).finish("succeeded", result_version="v1")
        journal.record(recorded)
        assert journal.reconcile(queue) == 0
        assert kept(journal) == [accepted.id]
        assert journal.all()[0].status.terminal == ended

    def test_one_that_has_ended_comes_before_an_older_one_that_was_never_accepted(
        self, queue: JobQueue, journal: JobJournal
    ) -> None:
        never, done = job(created_at=1.0, idempotency_key="k"), job(idempotency_key="k")
        journal.record(never)
        journal.record(done.model_copy(update={"status": JobStatus.SUCCEEDED, "result_version": "v1"}))
        assert journal.reconcile(queue) == 0
        assert queued(queue) == kept(journal) == [done.id]

    @pytest.mark.parametrize("hyperparameters", [{}, {"epochs": 2}], ids=["same", "another"])
    def test_one_whose_gateway_was_killed_takes_no_accepted_ones_place_after_redis_is_lost(
        self,
        link: QueueLink,
        queue: JobQueue,
        redis_client: redis.Redis,
        tmp_path: Path,
        hyperparameters: dict[str, int],
    ) -> None:
        """Its key is used again, and Redis goes before journal and Redis were compared once."""
        older = job(created_at=1.0, idempotency_key=scoped_key("k", None), hyperparameters=hyperparameters)
        with handing_in(older, tmp_path) as process:
            process.kill()
        accepted = submitted(link, tmp_path, key="k")
        redis_client.flushall()
        assert link.journal.reconcile(queue) == 1
        assert queued(queue) == kept(link.journal) == [accepted.id]
        assert link.journal.reconcile(queue) == 0

    def test_one_that_redis_took_before_its_gateway_was_killed_is_kept(
        self, queue: JobQueue, redis_client: redis.Redis, journal: JobJournal, tmp_path: Path
    ) -> None:
        taken_over = job(idempotency_key="k")
        with handing_in(taken_over, tmp_path) as process:
            queue.submit(taken_over)
            process.kill()
        assert kept(journal) == []
        assert journal.reconcile(queue) == 0
        redis_client.flushall()
        assert journal.reconcile(queue) == 1
        assert queued(queue) == kept(journal) == [taken_over.id]


class TestLostAnswers:
    def test_accepting_reads_nothing_after_it(self, queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("adapter_store.jobs.ledger.Ledger.get", unavailable)
        first = queue.submit(job(idempotency_key="k"))
        assert first.status is JobStatus.QUEUED
        assert queue.submit(job(idempotency_key="k")) == first

    def test_a_job_that_redis_has_is_accepted(
        self, link: QueueLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue = link.queue()
        monkeypatch.setattr(queue, "submit", lambda job: unavailable(JobQueue.submit(queue, job)))
        accepted = submitted(link, tmp_path)
        assert queued(queue) == kept(link.journal) == [accepted.id]

    def test_a_refused_job_that_redis_has_is_kept_and_leaves_redis_in_time(
        self,
        link: QueueLink,
        redis_client: redis.Redis,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        queue = link.queue()
        monkeypatch.setattr(queue, "submit", lambda job: unavailable(JobQueue.submit(queue, job)))
        monkeypatch.setattr(queue, "get", unavailable)
        with pytest.raises(QueueUnavailable):
            submitted(link, tmp_path, key="k")
        assert kept(link.journal) == []
        monkeypatch.undo()
        assert link.journal.reconcile(queue) == 0
        (known,) = kept(link.journal)
        assert submitted(link, tmp_path, key="k").id == known
        taken(queue).finish("succeeded", result_version="v1")
        link.journal.reconcile(queue)
        ttl: object = redis_client.ttl(f"strata:{{strata}}:job:{known}")
        assert isinstance(ttl, int)
        assert ttl > 0

    def test_a_refused_job_that_redis_has_not_never_runs(
        self, link: QueueLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue = link.queue()
        for name in ("submit", "get"):
            monkeypatch.setattr(queue, name, unavailable)
        with pytest.raises(QueueUnavailable):
            submitted(link, tmp_path)
        monkeypatch.undo()
        assert link.journal.reconcile(queue) == 0
        assert queued(queue) == kept(link.journal) == []
        assert list((tmp_path / "jobs").glob("*job-*")) == []


class TestReconcileWhileJobsAreHandedIn:
    def test_a_job_that_is_refused_meanwhile_is_not_submitted(
        self, link: QueueLink, queue: JobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded, looked = threading.Event(), threading.Event()

        def refused(_: Job) -> Job:
            recorded.set()
            assert looked.wait(60)
            return unavailable()

        monkeypatch.setattr(link.queue(), "submit", refused)
        counts: list[int] = []

        def reconcile() -> None:
            assert recorded.wait(60)
            threading.Timer(0.1, looked.set).start()  # time enough to submit what is not locked
            counts.append(link.journal.reconcile(queue))

        watch = threading.Thread(target=reconcile)
        watch.start()
        with pytest.raises(QueueUnavailable):
            submitted(link, tmp_path)
        watch.join()
        assert counts == [0]
        assert queued(queue) == []

    @pytest.mark.parametrize(
        ("end", "submitted_again"),
        [(lambda process: process.communicate("go\n"), 0), (lambda process: process.kill(), 1)],
        ids=["refused", "killed"],
    )
    def test_another_process_is_waited_for_at_the_second_look(
        self,
        queue: JobQueue,
        journal: JobJournal,
        tmp_path: Path,
        end: Callable[[subprocess.Popen[str]], object],
        submitted_again: int,
    ) -> None:
        """Several gateways may share a home; one that was killed inside gave its client no answer."""
        counts: list[int] = []
        with handing_in(job(), tmp_path) as process:
            assert journal.reconcile(queue) == 0
            watch = threading.Thread(target=lambda: counts.append(journal.reconcile(queue)))
            watch.start()
            watch.join(0.3)
            assert watch.is_alive(), "nobody was waited for"
            end(process)
        watch.join()
        assert counts == [submitted_again]
        assert len(queued(queue)) == submitted_again

    def test_what_is_under_way_holds_up_neither_the_look_nor_others(
        self, queue: JobQueue, journal: JobJournal, tmp_path: Path
    ) -> None:
        """Redis may be slow for one; the look does not wait for it while all others wait for the look."""
        counts: list[int] = []
        with handing_in(job(), tmp_path) as process:
            look = threading.Thread(target=lambda: counts.append(journal.reconcile(queue)))
            look.start()
            look.join(10)
            seen = list(counts)
            process.communicate("go\n")
        look.join()
        assert seen == [0]
        assert queued(queue) == []

    def test_it_has_its_turn_though_somebody_is_always_handing_in(
        self, queue: JobQueue, journal: JobJournal
    ) -> None:
        """Each of two leaves when the other one is inside, so the lock is never free of its own accord."""
        journal.record(job())
        may_leave = threading.Event(), threading.Event()
        inside, done = threading.Event(), threading.Event()
        latest = time.monotonic() + 8

        def hand_in(own: threading.Event, other: threading.Event) -> None:
            while not done.is_set() and time.monotonic() < latest:
                with journal.handed_in():
                    own.clear()
                    other.set()
                    if own.wait(1):
                        inside.set()

        threads = [threading.Thread(target=hand_in, args=order) for order in (may_leave, may_leave[::-1])]
        for thread in threads:
            thread.start()
        assert inside.wait(8)
        assert journal.reconcile(queue) == 1
        waited_in_vain = time.monotonic() >= latest
        done.set()
        for thread in threads:
            thread.join()
        assert not waited_in_vain
