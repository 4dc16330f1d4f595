"""The queue on a real Redis: at-least-once delivery, exactly-once effect."""

from __future__ import annotations

import threading
import time

import pytest
import redis

from adapter_store.errors import (
    ConflictError,
    InputError,
    LeaseLost,
    NotFoundError,
)
from adapter_store.jobs import Claim, JobQueue, JobStatus
from adapter_store.jobs.keys import EVENTS_SECONDS
from tests.integration.queueing import WRITER, in_threads, job, lapse, pending, taken


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
        assert 0.25 < time.monotonic() - started < 20

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

    def test_an_orphaned_or_returned_job_waits_since_it_was_sent(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        queue.submit(job())
        claim = taken(queue)
        assert (queue.depth(), queue.oldest_seconds()) == (0, 0.0)
        lapse(redis_client)
        assert queue.depth() == 1
        assert queue.oldest_seconds() > 0
        claim = taken(queue)
        assert queue.depth() == 0
        queue.submit(job())
        younger = queue.oldest_seconds()
        assert claim.release()
        assert queue.depth() == 2
        assert queue.oldest_seconds() > younger

    def test_what_has_ended_or_waits_again_has_no_estimate(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        asked = queue.submit(job())
        for leave in (lambda claim: claim.release(), lambda claim: claim.finish("succeeded")):
            claim = taken(queue)
            claim.update(estimated_finish=2e9)
            lapse(redis_client)
            claim = taken(queue)
            assert claim.job.estimated_finish is None
            claim.update(estimated_finish=2e9)
            leave(claim)
            assert queue.get(asked.id).estimated_finish is None

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
        with pytest.raises(LeaseLost):
            claim.update(phase="x")


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
        assert claim.finish("cancelled").status is JobStatus.CANCELLED
        assert queue.claim("w") is None

    def test_told_to_a_dead_worker_it_is_left_to_the_next_one(
        self, queue: JobQueue, redis_client: redis.Redis
    ) -> None:
        asked = queue.submit(job())
        taken(queue)
        queue.cancel(asked.id)
        lapse(redis_client)
        heir = taken(queue, "w2")
        assert heir.job.id == asked.id
        assert heir.is_cancelled()
        assert heir.finish("cancelled").status is JobStatus.CANCELLED

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
        claim.event("wärn\n\x1b[31m", level="warn")
        events = queue.events(asked.id)
        assert [event.type for event in events] == ["phase", *["metrics"] * 5, "message"]
        assert events[1].data == {"step": 0, "loss": 1.5, "nested": {"a": [1, None]}}
        assert (events[-1].level, events[-1].message) == ("warn", "wärn\n\x1b[31m")
        assert events[0].created_at == pytest.approx(time.time(), abs=5)
        assert queue.events(asked.id, after=events[3].id) == events[4:]
        assert queue.events(asked.id, after=events[1].id, limit=2) == events[2:4]
        assert queue.events(asked.id, after=events[-1].id) == []

    def test_events_keep_every_character(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        claim = taken(queue)
        told = ["", '"quoted" \\ and </script>', "\x00\x01\x1f\x7f\t\n", "ü 日本 😀 \u2028", "[]", "missing"]
        for text in told:
            claim.event(text, data={text: [text, 1e-7, 2**60, None, True, {}, []]})
        events = queue.events(asked.id)
        assert [event.message for event in events] == told
        assert [event.data for event in events] == [
            {text: [text, 1e-7, 2**60, None, True, {}, []]} for text in told
        ]

    def test_events_do_not_fill_redis_for_ever(self, queue: JobQueue, redis_client: redis.Redis) -> None:
        asked = queue.submit(job())
        taken(queue).event("one")
        key = f"strata:{{strata}}:events:{asked.id}"
        assert 0 < redis_client.ttl(key) <= EVENTS_SECONDS  # pyright: ignore[reportOperatorIssue]

    def test_a_job_keeps_its_last_thousand(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        claim = taken(queue)
        for number in range(1010):
            claim.event(str(number))
        events = queue.events(asked.id, limit=5000)
        assert [event.message for event in events] == [str(n) for n in range(10, 1010)]

    def test_unknown_jobs_and_ids(self, queue: JobQueue) -> None:
        asked = queue.submit(job())
        assert queue.events(asked.id) == []
        for call in (queue.events, queue.get):
            with pytest.raises(NotFoundError, match="job-unknown"):
                call("job-unknown")
        for after in ("x", "-1", "1-2-3", "(0", "+", "1" * 40):
            with pytest.raises(InputError, match="event id"):
                queue.events(asked.id, after=after)
        claim = taken(queue)
        with pytest.raises(InputError):
            claim.event("x", level="loud")  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match="NaN"):
            claim.event("x", data={"loss": float("nan")})
