"""The queue on a real Redis: at-least-once delivery, exactly-once effect, and what goes wrong."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from adapter_store.datasets.records import DatasetRef
from adapter_store.errors import (
    ConflictError,
    FencedOut,
    InputError,
    LeaseLost,
    NotFoundError,
    QueueUnavailable,
)
from adapter_store.jobs import Claim, Job, JobJournal, JobQueue, JobStatus, connect
from adapter_store.redis_server import RedisServer
from adapter_store.versions import ManifestDraft, VersionStore

REF = DatasetRef("ds-0123456789abcdef", 3, 2, "d" * 64)
STREAM, WRITER, GROUP = "strata:{strata}:jobs", "strata:{strata}:writer", "workers"


@pytest.fixture
def queue(redis_client: redis.Redis) -> JobQueue:
    return JobQueue(redis_client, "strata", lease_seconds=60)


def job(**fields: Any) -> Job:
    return Job(lineage="strata", dataset=REF, **fields)


def taken(queue: JobQueue, worker: str = "w", block_seconds: float = 0) -> Claim:
    claim = queue.claim(worker, block_seconds)
    assert claim is not None
    return claim


def lapse(client: redis.Redis) -> None:
    """Let a minute pass for Redis: leases run out, entries have been idle. No test has to sleep for it."""
    client.delete(WRITER)
    for entry in pending(client):
        name, number = entry["consumer"], entry["message_id"]
        client.xclaim(STREAM, GROUP, name, 0, [number], idle=61_000, justid=True)


def pending(client: redis.Redis) -> list[dict[str, Any]]:
    return client.xpending_range(STREAM, GROUP, "-", "+", 10)  # pyright: ignore[reportReturnType]


def in_threads(count: int, target: Any) -> None:
    threads = [threading.Thread(target=target, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class TestSubmit:
    def test_a_job_comes_back_as_queued(self, queue: JobQueue) -> None:
        asked = job(
            task="digits", hyperparameters={"epochs": 2, "lr": 1e-3, "share": True}, metadata={"a": "é"}
        )
        queued = queue.submit(asked)
        assert queued == asked.model_copy(update={"status": JobStatus.QUEUED})
        assert queue.get(asked.id) == queued
        assert queue.depth() == 1
        assert 0 <= queue.oldest_seconds() < 5

    def test_the_same_id_is_queued_once(self, queue: JobQueue) -> None:
        asked = job()
        in_threads(8, lambda _: queue.submit(asked))
        assert queue.depth() == 1
        taken(queue).finish("succeeded", result_version="v1")
        assert queue.submit(asked).status is JobStatus.SUCCEEDED
        assert queue.depth() == 0

    def test_an_idempotency_key_makes_one_job_of_many_requests(self, queue: JobQueue) -> None:
        answers: list[str] = []
        in_threads(8, lambda _: answers.append(queue.submit(job(idempotency_key="k: 1\n")).id))
        assert len(set(answers)) == 1
        assert queue.depth() == 1
        assert len(queue.list()) == 1

    def test_a_key_for_another_request_is_a_conflict(self, queue: JobQueue) -> None:
        first = queue.submit(job(task="digits", idempotency_key="k"))
        with pytest.raises(ConflictError, match=first.id):
            queue.submit(job(task="animals", idempotency_key="k"))
        assert queue.depth() == 1

    def test_lineages_are_apart(self, queue: JobQueue, redis_client: redis.Redis) -> None:
        other = JobQueue(redis_client, "other")
        queue.submit(job())
        assert other.claim("w") is None
        assert other.list() == []
        with pytest.raises(InputError, match="other"):
            other.submit(job())

    def test_pages_are_newest_first(self, queue: JobQueue) -> None:
        ids = [queue.submit(job(created_at=100.0 + n)).id for n in range(5)]
        assert [one.id for one in queue.list(limit=2)] == [ids[4], ids[3]]
        assert [one.id for one in queue.list(limit=2, after=ids[3])] == [ids[2], ids[1]]
        assert [one.id for one in queue.list(limit=9, after=ids[0])] == []
        with pytest.raises(NotFoundError):
            queue.list(after="job-unknown")


class TestClaim:
    def test_first_in_first_out_with_growing_fences(self, queue: JobQueue) -> None:
        ids = [queue.submit(job()).id for _ in range(3)]
        fences = []
        for expected in ids:
            claim = taken(queue)
            assert claim.job.id == expected
            assert claim.job.status is JobStatus.RUNNING
            assert claim.job.attempts == 1
            assert claim.job.started_at == pytest.approx(time.time(), abs=5)
            fences.append(claim.fence)
            done = claim.finish(JobStatus.SUCCEEDED, result_version="v1", decision="expand")
            assert (done.status, done.result_version, done.phase) == ("succeeded", "v1", None)
            assert done.finished_at == pytest.approx(time.time(), abs=5)
        assert fences == sorted(set(fences))
        assert queue.claim("w") is None
        assert queue.depth() == 0

    def test_only_one_job_of_a_lineage_runs(self, queue: JobQueue) -> None:
        queue.submit(job())
        second = queue.submit(job())
        first = taken(queue, "w1")
        assert queue.claim("w2") is None
        assert queue.depth() == 1
        first.finish("succeeded")
        assert taken(queue, "w2").job.id == second.id

    def test_of_many_workers_one_gets_the_job(self, queue: JobQueue) -> None:
        queue.submit(job())
        claims: list[Claim | None] = []
        in_threads(8, lambda n: claims.append(queue.claim(f"w{n}")))
        assert len([claim for claim in claims if claim]) == 1

    def test_a_waiting_worker_wakes_for_a_new_job(self, queue: JobQueue) -> None:
        threading.Timer(0.2, lambda: queue.submit(job())).start()
        started = time.monotonic()
        assert taken(queue, block_seconds=5).job
        assert time.monotonic() - started < 2

    def test_waiting_ends(self, queue: JobQueue) -> None:
        started = time.monotonic()
        assert queue.claim("w", 0.3) is None
        assert 0.25 < time.monotonic() - started < 2

    def test_a_lease_runs_out_by_itself(self, redis_client: redis.Redis) -> None:
        queue = JobQueue(redis_client, "strata", lease_seconds=0.2)
        asked = queue.submit(job())
        taken(queue, "silent")
        heir = taken(queue, "heir", block_seconds=20)
        assert heir.job.id == asked.id
        assert heir.job.attempts == 2

    def test_a_silent_worker_loses_its_job_and_can_write_nothing(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        asked = queue.submit(job())
        zombie = taken(queue, "zombie")
        lapse(redis_client)
        heir = taken(queue, "heir")
        assert heir.job.id == asked.id
        assert heir.job.attempts == 2
        assert heir.fence > zombie.fence
        assert zombie.heartbeat() is False
        for write in (
            lambda: zombie.update(phase="train"),
            lambda: zombie.event("still here"),
            lambda: zombie.finish("failed"),
        ):
            with pytest.raises(LeaseLost, match=asked.id):
                write()
        assert zombie.release() is False
        assert queue.events(asked.id) == []
        heir.finish("succeeded", result_version="v1")
        with pytest.raises(LeaseLost):
            zombie.finish("failed")
        assert queue.get(asked.id).result_version == "v1"

    def test_heartbeats_renew_the_lease_and_count_as_no_delivery(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        asked = queue.submit(job())
        claim = taken(queue)
        for _ in range(5):
            lapse(redis_client)
            assert claim.heartbeat()
            (entry,) = pending(redis_client)
            assert entry["time_since_delivered"] < 60_000
            assert entry["times_delivered"] == 1, "a heartbeat was counted as a delivery"
            assert 0 < int(str(redis_client.pttl(WRITER))) <= 60_000
            assert queue.claim("other") is None
        lapse(redis_client)
        assert taken(queue, "other").job.attempts == 2
        assert queue.get(asked.id).status is JobStatus.RUNNING

    def test_the_lease_thread_keeps_a_long_phase_alive_and_reports_a_loss(
        self, redis_client: redis.Redis
    ) -> None:
        queue = JobQueue(redis_client, "strata", lease_seconds=0.3)
        queue.submit(job())
        claim = taken(queue)
        with claim.kept_alive() as lost:
            redis_client.delete(WRITER)
            deadline = time.monotonic() + 20
            while not redis_client.exists(WRITER):
                assert time.monotonic() < deadline, "nobody renewed the lease"
            assert not lost.is_set()
            redis_client.flushall()
            assert lost.wait(20)

    def test_a_lease_that_ran_out_unnoticed_is_taken_up_again(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        queue.submit(job())
        claim = taken(queue)
        lapse(redis_client)
        assert claim.heartbeat()
        assert queue.claim("other") is None
        lapse(redis_client)
        assert claim.finish("succeeded").status is JobStatus.SUCCEEDED

    def test_finishing_again_after_a_lost_answer_changes_nothing(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        claim = taken(queue)
        claim.finish("succeeded", result_version="v1")
        assert claim.finish("failed").status is JobStatus.SUCCEEDED
        assert queue.get(asked.id).result_version == "v1"

    def test_given_back_is_taken_at_once_and_not_counted(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        queue.submit(job())
        for _ in range(5):
            claim = taken(queue)
            assert claim.job.id == asked.id
            assert claim.job.attempts == 1
            assert claim.release()
            assert queue.get(asked.id).status is JobStatus.QUEUED
            with pytest.raises(LeaseLost):
                claim.update(phase="train")

    def test_updates_are_checked(self, queue: JobQueue) -> None:
        queue.submit(job())
        claim = taken(queue)
        updated = claim.update(phase="train", seconds={"encode": 1.5}, estimated_finish=12.0, task="digits")
        assert (updated.phase, updated.seconds, updated.task) == ("train", {"encode": 1.5}, "digits")
        for wrong in (
            {"phse": "x"},
            {"id": "job-2"},
            {"seconds": "soon"},
            {"status": "odd"},
            {"_fence": "1"},
        ):
            with pytest.raises(InputError):
                claim.update(**wrong)
        with pytest.raises(InputError, match="cannot finish"):
            claim.finish("running")
        done = claim.finish("failed", error={"code": "diverged", "message": "loss is NaN"})
        assert done.error is not None
        assert done.error.code == "diverged"
        with pytest.raises(ConflictError, match="ended"):
            queue.update(done.id, phase="x")


class TestCancel:
    def test_a_waiting_job_is_cancelled_at_once(self, queue: JobQueue) -> None:
        first, second = queue.submit(job()), queue.submit(job())
        cancelled = queue.cancel(first.id)
        assert cancelled.status is JobStatus.CANCELLED
        assert cancelled.finished_at is not None
        assert queue.cancel(first.id).status is JobStatus.CANCELLED
        assert queue.depth() == 1
        assert taken(queue).job.id == second.id

    def test_a_running_job_is_told(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        claim = taken(queue)
        assert not claim.is_cancelled()
        assert queue.cancel(asked.id).status is JobStatus.RUNNING
        assert claim.is_cancelled()
        assert queue.is_cancelled(asked.id)
        assert claim.finish("cancelled").status is JobStatus.CANCELLED
        assert queue.claim("w") is None

    def test_told_to_a_dead_worker_it_is_cancelled_at_the_next_claim(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        asked, other = queue.submit(job()), queue.submit(job())
        taken(queue)
        queue.cancel(asked.id)
        lapse(redis_client)
        assert taken(queue, "w2").job.id == other.id
        assert queue.get(asked.id).status is JobStatus.CANCELLED

    def test_what_has_ended_stays(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        taken(queue).finish("succeeded")
        with pytest.raises(ConflictError, match="succeeded"):
            queue.cancel(asked.id)
        with pytest.raises(NotFoundError):
            queue.cancel("job-unknown")
        with pytest.raises(InputError):
            queue.cancel("../job")


class TestEvents:
    def test_events_are_read_in_order_from_an_id_on(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        claim = taken(queue)
        claim.event("train", type="phase")
        for step in range(5):
            claim.event("step", type="metrics", data={"step": step, "loss": 1.5, "nested": {"a": [1, None]}})
        queue.append_event(asked.id, "wärn\n\x1b[31m", level="warn")
        events = queue.events(asked.id)
        assert [event.type for event in events] == ["phase", *["metrics"] * 5, "message"]
        assert events[1].data == {"step": 0, "loss": 1.5, "nested": {"a": [1, None]}}
        assert (events[-1].level, events[-1].message) == ("warn", "wärn\n\x1b[31m")
        assert events[0].created_at == pytest.approx(time.time(), abs=5)
        assert queue.events(asked.id, after=events[3].id) == events[4:]
        assert queue.events(asked.id, after=events[1].id, limit=2) == events[2:4]
        assert queue.events(asked.id, after=events[-1].id) == []

    def test_a_job_keeps_its_last_thousand(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        for number in range(1010):
            queue.append_event(asked.id, str(number))
        events = queue.events(asked.id, limit=5000)
        assert [event.message for event in events] == [str(n) for n in range(10, 1010)]

    def test_unknown_jobs_and_ids(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        assert queue.events(asked.id) == []
        for call in (
            queue.events,
            queue.get,
            lambda i: queue.append_event(i, "x"),
            lambda i: queue.update(i, phase="x"),
        ):
            with pytest.raises(NotFoundError, match="job-unknown"):
                call("job-unknown")
        for after in ("x", "-1", "1-2-3", "(0", "+", "1" * 40):
            with pytest.raises(InputError, match="event id"):
                queue.events(asked.id, after=after)
        with pytest.raises(InputError):
            queue.append_event(asked.id, "x", level="loud")  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match="NaN"):
            queue.append_event(asked.id, "x", data={"loss": float("nan")})


class TestDeadLetters:
    def test_a_job_that_kills_every_worker_is_given_up(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        poison, next_one = queue.submit(job()), queue.submit(job())
        for attempt in (1, 2, 3):
            assert taken(queue).job.attempts == attempt
            lapse(redis_client)
        assert taken(queue).job.id == next_one.id
        failed = queue.get(poison.id)
        assert failed.status is JobStatus.FAILED
        assert failed.error is not None
        assert failed.error.code == "too_many_attempts"
        assert failed.finished_at is not None
        assert queue.events(poison.id)[-1].level == "error"
        assert [letter["job"] for letter in queue.dead_letters()] == [poison.id]

    @pytest.mark.parametrize(
        "payload",
        [
            {"hello": "world"},
            {"job": "job-never-submitted"},
            {"job": "../../etc/passwd"},
            {"job": b"\xff\xfe\x00"},
            {"job": "taken"},
            {"x" * 5000: "y" * 100_000},
        ],
    )
    def test_a_foreign_payload_stops_nobody(
        self, queue: JobQueue, redis_client: redis.Redis, payload: dict[Any, Any]
    ) -> None:
        redis_client.set("strata:{strata}:job:taken", "a string, not a hash")
        redis_client.xadd(STREAM, payload)
        asked = queue.submit(job())
        redis_client.xadd(STREAM, payload)
        claim = taken(queue)
        assert claim.job.id == asked.id
        claim.finish("succeeded")
        assert queue.claim("w") is None
        letters = queue.dead_letters()
        assert [letter["reason"] for letter in letters] == ["not a job of this queue"] * 2
        assert all(len(letter["payload"]) < 5000 for letter in letters)
        assert queue.depth() == 0

    def test_a_record_of_another_program_is_buried(self, queue: JobQueue, redis_client: redis.Redis) -> None:
        redis_client.hset("strata:{strata}:job:job-odd", mapping={"status": '"queued"', "color": "not json"})
        entry = redis_client.xadd("strata:{strata}:jobs", {"job": "job-odd"})
        redis_client.hset("strata:{strata}:job:job-odd", "_entry", str(entry))
        asked = queue.submit(job())
        assert taken(queue).job.id == asked.id
        assert queue.dead_letters()[0]["job"] == "job-odd"

    def test_a_second_entry_for_a_job_is_dropped(self, queue: JobQueue, redis_client: redis.Redis) -> None:
        asked = queue.submit(job())
        redis_client.xadd("strata:{strata}:jobs", {"job": asked.id})
        taken(queue).finish("succeeded")
        assert queue.claim("w") is None

    def test_an_entry_deleted_by_an_operator_stops_nobody(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        queue.submit(job())
        taken(queue)
        redis_client.xtrim(STREAM, maxlen=0)
        asked = queue.submit(job())
        lapse(redis_client)
        assert taken(queue).job.id == asked.id


class TestRedisInTrouble:
    def test_nobody_there(self, tmp_path: Path) -> None:
        with pytest.raises(QueueUnavailable, match="does not answer"):
            connect(f"unix://{tmp_path}/redis.sock")
        with pytest.raises(QueueUnavailable, match="does not answer") as caught:
            connect("redis://:secret@127.0.0.1:1/0")
        assert "secret" not in caught.value.message
        queue = JobQueue(connect(f"unix://{tmp_path}/redis.sock", check=False), "strata")
        for call in (
            lambda: queue.submit(job()),
            lambda: queue.get("job-1"),
            lambda: queue.list(3),
            lambda: queue.cancel("job-1"),
            lambda: queue.is_cancelled("job-1"),
            lambda: queue.events("job-1"),
            lambda: queue.append_event("job-1", "x"),
            lambda: queue.update("job-1", phase="x"),
            lambda: queue.claim("w"),
            queue.depth,
            queue.oldest_seconds,
            queue.dead_letters,
        ):
            with pytest.raises(QueueUnavailable):
                call()

    @pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "", "redis://localhost:port/0"])
    def test_an_address_that_is_none(self, url: str) -> None:
        with pytest.raises(InputError, match="Redis URL"):
            connect(url)

    def test_gone_in_the_middle_and_back_with_everything(self, tmp_path: Path) -> None:
        with RedisServer.start(tmp_path) as server:
            queue = JobQueue(connect(server.url), "strata", lease_seconds=30)
            asked, waiting = queue.submit(job()), queue.submit(job())
            claim = taken(queue)
            claim.event("half way")
        with pytest.raises(QueueUnavailable):
            claim.heartbeat()
        with pytest.raises(QueueUnavailable):
            queue.submit(job())
        with RedisServer.start(tmp_path):
            assert claim.heartbeat()
            assert queue.claim("other") is None
            assert claim.finish("succeeded").id == asked.id
            assert [event.message for event in queue.events(asked.id)] == ["half way"]
            assert taken(queue).job.id == waiting.id

    def test_full_it_refuses_new_jobs_and_still_drains(self, tmp_path: Path) -> None:
        with RedisServer.start(tmp_path) as server:
            client = connect(server.url)
            queue = JobQueue(client, "strata", lease_seconds=60)
            asked = [queue.submit(job()) for _ in range(3)][-1]
            client.set("ballast", "x" * 3_000_000)
            client.config_set("maxmemory", "1mb")
            with pytest.raises(QueueUnavailable, match="Redis is full"):
                queue.submit(job())
            with pytest.raises(QueueUnavailable, match="Redis is full"):
                queue.append_event(asked.id, "x")
            assert len(queue.list()) == 3
            assert taken(queue).heartbeat()
            lapse(client)
            claim = taken(queue)
            assert claim.heartbeat()
            assert claim.finish("succeeded").status is JobStatus.SUCCEEDED
            assert taken(queue).release()
            assert queue.cancel(asked.id).status is JobStatus.CANCELLED
            client.close()

    def test_too_old_or_no_redis(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("adapter_store.jobs.connection._OLDEST", (99, 0))
        with pytest.raises(QueueUnavailable, match="newer is needed"):
            connect(redis_url)

    def test_a_key_of_another_kind(self, queue: JobQueue, redis_client: redis.Redis) -> None:
        redis_client.set("strata:{strata}:jobs", "mine")
        with pytest.raises(QueueUnavailable, match="WRONGTYPE"):
            queue.submit(job())
        with pytest.raises(QueueUnavailable, match="WRONGTYPE"):
            queue.claim("w")


class TestJournal:
    def test_after_redis_lost_everything_each_job_is_back_once(
        self, queue: JobQueue, redis_client: redis.Redis, tmp_path: Path
    ) -> None:
        journal = JobJournal(tmp_path)
        jobs = [job(created_at=100.0 + n, idempotency_key=f"k{n}") for n in range(4)]
        for one in jobs:
            journal.record(one)
            queue.submit(one)
        journal.record(taken(queue).finish("succeeded", result_version="v1"))
        running = taken(queue)
        journal.record(queue.cancel(jobs[3].id))
        redis_client.flushall()
        assert queue.list() == []

        assert journal.reconcile(queue) == 2
        assert journal.reconcile(queue) == 0
        in_threads(4, lambda _: journal.reconcile(queue))
        assert queue.depth() == 2
        assert [one.status for one in reversed(queue.list())] == [
            "succeeded",
            "queued",
            "queued",
            "cancelled",
        ]
        assert queue.get(jobs[0].id).result_version == "v1"
        assert queue.submit(job(idempotency_key="k0")).id == jobs[0].id
        assert running.heartbeat() is False, "the claim from before the loss is void"
        again = taken(queue)
        assert again.job.id == running.job.id
        assert again.fence > running.fence, "tokens grow across the loss"
        with pytest.raises(LeaseLost):
            running.finish("failed")

    def test_a_job_that_never_reached_redis_is_submitted(self, queue: JobQueue, tmp_path: Path) -> None:
        journal = JobJournal(tmp_path)
        asked = job()
        journal.record(asked)
        journal.record(job().model_copy(update={"lineage": "other"}))
        assert journal.reconcile(queue) == 1
        assert taken(queue).job.id == asked.id

    def test_an_outcome_that_only_redis_knows_is_written_down(self, queue: JobQueue, tmp_path: Path) -> None:
        journal = JobJournal(tmp_path)
        asked = job()
        journal.record(asked)
        queue.submit(asked)
        assert journal.reconcile(queue) == 0
        done = taken(queue).finish("succeeded", result_version="v3")
        assert journal.reconcile(queue) == 0
        assert journal.get(asked.id) == done
        assert journal.pending() == []

    def test_of_repeated_requests_only_the_first_is_run(
        self, queue: JobQueue, redis_client: redis.Redis, tmp_path: Path
    ) -> None:
        """The server died between journal and queue while a client repeated its request."""
        journal = JobJournal(tmp_path)
        first, again = job(created_at=1.0, idempotency_key="k"), job(created_at=2.0, idempotency_key="k")
        journal.record(first)
        journal.record(again)
        other = job(created_at=3.0, task="x", idempotency_key="taken")
        queue.submit(job(task="y", idempotency_key="taken"))
        journal.record(other)
        assert journal.reconcile(queue) == 1
        assert journal.pending() == [first]
        assert len(queue.list()) == 2


def draft(job_id: str) -> ManifestDraft:
    return ManifestDraft(
        base_id="b",
        base_digest="d",
        job_id=job_id,
        dataset_id="ds",
        task="t",
        decision="expand",
        tasks=("t",),
    )


def test_many_workers_that_freeze_and_die_publish_each_job_once(
    redis_client: redis.Redis, tmp_path: Path
) -> None:
    """Workers freeze past their lease at every stage and go on as zombies; each job has one effect."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "state.bin").write_bytes(b"state")
    queue = JobQueue(redis_client, "strata", lease_seconds=0.15, max_deliveries=50)
    jobs = [queue.submit(job()).id for _ in range(6)]
    deadline = time.monotonic() + 40

    def worker(number: int) -> None:
        store = VersionStore(tmp_path / "versions", "strata")
        turn = number
        while time.monotonic() < deadline and any(not queue.get(i).status.terminal for i in jobs):
            claim = queue.claim(f"w{number}", 0.2)
            if claim is None:
                continue
            turn += 1
            freeze = [0.0, 0.2, 0.0][turn % 3], [0.0, 0.0, 0.2][turn % 3]
            try:
                time.sleep(freeze[0])
                manifest = store.publish(folder, draft(claim.job.id), fence=claim.fence)
                time.sleep(freeze[1])
                claim.finish("succeeded", result_version=manifest.version)
            except (LeaseLost, FencedOut):
                continue

    in_threads(4, worker)
    records = [queue.get(i) for i in jobs]
    assert {record.status for record in records} == {JobStatus.SUCCEEDED}
    published = {m.job_id: m.version for m in VersionStore(tmp_path / "versions", "strata").list()}
    assert len(VersionStore(tmp_path / "versions", "strata").list()) == len(jobs)
    assert published == {record.id: record.result_version for record in records}
    assert any(record.attempts > 1 for record in records), "nobody lost a lease: the test proved nothing"
