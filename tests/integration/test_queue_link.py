"""The gateway's line to a real Redis that restarts empty, hangs, or holds more than a page."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from adapter_store.errors import NotFoundError
from adapter_store.jobs import Job, JobEvent, JobJournal, JobQueue, JobStatus
from adapter_store.redis_server import RedisServer
from server.jobs import link as link_module
from server.jobs.link import QueueLink, RedisPlace
from server.jobs.service import get_job, list_checkpoints, list_events, list_jobs
from server.metrics import Metrics
from server.pools import WATCH
from tests.integration.queueing import job, lapse, taken


def ended() -> Job:
    return job().model_copy(update={"status": JobStatus.SUCCEEDED, "result_version": "v1"})


async def until_known(link: QueueLink, job_id: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                link.queue().get(job_id)
            except NotFoundError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_ended_jobs_outlive_a_redis_that_restarts_empty_between_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_LOOK_SECONDS", 0.02)
    server = RedisServer.start(tmp_path / "elsewhere")
    link = QueueLink(RedisPlace(server.url, tmp_path), "strata", JobJournal(tmp_path / "jobs"))
    done = ended()
    link.journal.record(done)
    watch = asyncio.create_task(link.watch(Metrics()))
    go_on = threading.Event()
    try:
        await until_known(link, done.id)
        looking = asyncio.create_task(WATCH.run(go_on.wait))  # no look sees that Redis is away
        server.stop()
        shutil.rmtree(tmp_path / "elsewhere" / "redis")
        server = RedisServer.start(tmp_path / "elsewhere")
        with pytest.raises(NotFoundError):
            link.queue().get(done.id)
        assert await get_job(link, done.id) == done
        assert await list_events(link, done.id, 10, None) == ([], False)
        with pytest.raises(NotFoundError):
            await get_job(link, "job-nope")
        go_on.set()
        await looking
        await until_known(link, done.id)
    finally:
        go_on.set()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        server.stop()


@pytest.mark.parametrize(("steps", "messages", "wanted", "pages"), [(150, 120, 150, 2), (0, 120, 1, 3)])
async def test_the_last_step_of_a_job_is_looked_for_from_the_end(
    redis_url: str,
    redis_client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    messages: int,
    wanted: int,
    pages: int,
) -> None:
    link = QueueLink(RedisPlace(redis_url, tmp_path), "strata", JobJournal(tmp_path / "jobs"))
    queue = link.queue()
    asked = queue.submit(job())
    claim = taken(queue)
    for number in range(1, steps + 1):
        claim.event("step", type="metrics", data={"step": number, "loss": 1 / number})
    claim.event("measured", type="metrics", data={"accuracy": 1.0})
    for number in range(messages):
        claim.event(str(number))
    claim.finish("succeeded", result_version="v1")
    read: list[int] = []

    def counting(*args: Any, **more: Any) -> list[JobEvent]:
        found = JobQueue.events(queue, *args, **more)
        read.append(len(found))
        return found

    monkeypatch.setattr(queue, "events", counting)
    (found,) = (await list_checkpoints(link, asked.id, "strata", None))["data"]
    assert found["step_number"] == wanted
    assert found["metrics"] == ({"step": steps, "train_loss": 1 / steps} if steps else {})
    assert len(read) == pages
    assert max(read) <= 100


async def test_a_record_that_cannot_be_read_ends_no_list(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    link = QueueLink(RedisPlace(redis_url, tmp_path), "strata", JobJournal(tmp_path / "jobs"))
    ids = [link.queue().submit(job(created_at=100.0 - n)).id for n in range(7)]
    for unreadable in (ids.pop(1), ids.pop(-1)):
        redis_client.hset(f"strata:{{strata}}:job:{unreadable}", "of_a_newer_strata", "1")
    page, more = await list_jobs(link, 3, None)
    assert ([one.id for one in page], more) == (ids[:3], True)
    rest, more = await list_jobs(link, 3, ids[2])
    assert ([one.id for one in rest], more) == (ids[3:], False)


async def test_what_was_given_up_is_counted_by_the_gateway(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_LOOK_SECONDS", 0.02)
    link = QueueLink(RedisPlace(redis_url, tmp_path), "strata", JobJournal(tmp_path / "jobs"))
    metrics = Metrics()

    async def counted(expected: float) -> None:
        async with asyncio.timeout(60):
            while True:
                if metrics.registry.get_sample_value("strata_dead_letters_total") == expected:
                    return
                await asyncio.sleep(0.02)

    assert metrics.registry.get_sample_value("strata_dead_letters_total") is None, "not known is not 0"
    watch = asyncio.create_task(link.watch(metrics))
    try:
        await counted(0)
        link.queue().submit(job())
        for _ in range(3):
            assert link.queue().claim("killed") is not None
            lapse(redis_client)
        assert link.queue().claim("alive") is None
        await counted(1)
        redis_client.hset("strata:{strata}:job:job-odd", mapping={"status": '"queued"', "color": "not json"})
        entry = redis_client.xadd("strata:{strata}:jobs", {"job": "job-odd"})
        redis_client.hset("strata:{strata}:job:job-odd", "_entry", str(entry))
        assert link.queue().claim("alive") is None
        await counted(2)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def test_the_largest_page_of_jobs_says_that_there_are_more(redis_url: str, tmp_path: Path) -> None:
    link = QueueLink(RedisPlace(redis_url, tmp_path), "strata", JobJournal(tmp_path / "jobs"))
    for _ in range(1001):
        link.queue().submit(job())
    page, more = await list_jobs(link, 1000, None)
    assert (len(page), more) == (1000, True)
    rest, more = await list_jobs(link, 1000, page[-1].id)
    assert (len(rest), more) == (1, False)
