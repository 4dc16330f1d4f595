"""The queue on a real Redis in trouble: foreign entries, lost and full servers, dying workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import redis

from adapter_store.errors import (
    FencedOut,
    InputError,
    LeaseLost,
    NotFoundError,
    QueueUnavailable,
)
from adapter_store.jobs import JobJournal, JobQueue, JobStatus, connect
from adapter_store.redis_server import RedisServer
from adapter_store.versions import ManifestDraft, VersionStore
from tests.integration.queueing import STREAM, dead_letters, in_threads, job, lapse, taken


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
        assert [letter["job"] for letter in dead_letters(redis_client)] == [poison.id]

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
        letters = dead_letters(redis_client)
        assert [letter["reason"] for letter in letters] == ["not a job of this queue"] * 2
        assert all(len(letter["payload"]) < 5000 for letter in letters)
        assert queue.depth() == 0

    def test_a_record_of_another_program_is_buried(self, queue: JobQueue, redis_client: redis.Redis) -> None:
        redis_client.hset("strata:{strata}:job:job-odd", mapping={"status": '"queued"', "color": "not json"})
        entry = redis_client.xadd("strata:{strata}:jobs", {"job": "job-odd"})
        redis_client.hset("strata:{strata}:job:job-odd", "_entry", str(entry))
        asked = queue.submit(job())
        assert taken(queue).job.id == asked.id
        assert dead_letters(redis_client)[0]["job"] == "job-odd"

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
            lambda: queue.events("job-1"),
            lambda: queue.claim("w"),
            queue.depth,
            queue.oldest_seconds,
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
            assert len(queue.list()) == 3
            claim = taken(queue)
            assert claim.heartbeat()
            with pytest.raises(QueueUnavailable, match="Redis is full"):
                claim.event("x")
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

    def test_a_periodic_look_reads_unfinished_jobs_only(self, queue: JobQueue, tmp_path: Path) -> None:
        journal = JobJournal(tmp_path)
        ended = job().model_copy(update={"status": JobStatus.SUCCEEDED})
        asked = job()
        for one in (ended, asked):
            journal.record(one)
        assert journal.reconcile(queue, ended=False) == 1
        with pytest.raises(NotFoundError):
            queue.get(ended.id)
        assert journal.reconcile(queue) == 0
        assert queue.get(ended.id).status == "succeeded"

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
    """Each job's first worker outlives its lease, before or behind publishing, and goes on as a zombie."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "state.bin").write_bytes(b"state")
    queue = JobQueue(redis_client, "strata", lease_seconds=0.15, max_deliveries=50)
    jobs = [queue.submit(job()).id for _ in range(6)]
    deadline = time.monotonic() + 40
    refused: list[Exception] = []

    def freeze(job_id: str) -> None:
        while queue.get(job_id).attempts < 2 and time.monotonic() < deadline:
            time.sleep(0.01)

    def worker(number: int) -> None:
        store = VersionStore(tmp_path / "versions", "strata")
        while time.monotonic() < deadline and any(not queue.get(i).status.terminal for i in jobs):
            claim = queue.claim(f"w{number}", 0.2)
            if claim is None:
                continue
            first, early = claim.job.attempts == 1, jobs.index(claim.job.id) % 2 == 0
            try:
                if first and early:
                    freeze(claim.job.id)
                manifest = store.publish(folder, draft(claim.job.id), fence=claim.fence)
                if first and not early:
                    freeze(claim.job.id)
                claim.finish("succeeded", result_version=manifest.version)
            except (LeaseLost, FencedOut) as error:
                refused.append(error)

    in_threads(4, worker)
    records = [queue.get(i) for i in jobs]
    assert {record.status for record in records} == {JobStatus.SUCCEEDED}
    published = {m.job_id: m.version for m in VersionStore(tmp_path / "versions", "strata").list()}
    assert len(VersionStore(tmp_path / "versions", "strata").list()) == len(jobs)
    assert published == {record.id: record.result_version for record in records}
    assert all(record.attempts > 1 for record in records)
    assert refused, "no worker outlived its lease: the test proved nothing"
