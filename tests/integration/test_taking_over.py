"""A worker that was killed is known to be dead on its machine; one that lives, or is elsewhere, never is."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from adapter_store.errors import LeaseLost
from adapter_store.jobs import JobQueue, JobStatus, Presence, presence
from tests.integration.queueing import WRITER, job, taken
from tests.integration.working import Site

LEASE_SECONDS = 3600.0
"""Longer than any test: what is handed out within it was taken over, not waited for."""
WORKER = """
import sys
from pathlib import Path
from typing import Any
from adapter_store.jobs import JobQueue, Presence, connect

url, home, name = sys.argv[1:]
place = Presence.take(Path(home) / "run" / "workers")
queue = JobQueue(connect(url), "strata", lease_seconds=3600, presence=place)
print("ready", flush=True)
for line in sys.stdin:
    claim = queue.claim(name, 1.0)
    print(claim.job.attempts if claim else "nothing", flush=True)
"""


class Running:
    """A process that claims when it is told to, and keeps what it got."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("claim\n")
        self.process.stdin.flush()

    def claim(self) -> str:
        """Return which attempt it got, or nothing."""
        self.tell()
        return self.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(url: str, home: Path, name: str) -> Iterator[Running]:
    command = [sys.executable, "-c", WORKER, url, str(home), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = Running(process)
            assert found.read() == "ready"
            yield found
        finally:
            process.kill()


def queue_in(client: redis.Redis, home: Path | None, **more: int) -> JobQueue:
    """Return the queue as a worker of that home has it; of none: as one that knows nobody."""
    place = None if home is None else Presence.take(home / "run" / "workers")
    assert home is None or place is not None
    return JobQueue(client, "strata", lease_seconds=LEASE_SECONDS, presence=place, **more)


def test_a_killed_workers_job_is_taken_over_at_once(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    heirs = queue_in(redis_client, tmp_path)
    asked = heirs.submit(job())
    with running(redis_url, tmp_path, "first") as first:
        assert first.claim() == "1"
        assert heirs.claim("heir") is None
        first.kill()
        claim = taken(heirs, "heir")
    assert (claim.job.id, claim.job.attempts, claim.job.status) == (asked.id, 2, JobStatus.RUNNING)
    assert claim.heartbeat()
    assert claim.finish("succeeded", result_version="v1").status is JobStatus.SUCCEEDED


def test_a_worker_that_lives_keeps_its_job_even_if_it_is_stopped(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    heirs = queue_in(redis_client, tmp_path)
    asked = heirs.submit(job())
    with running(redis_url, tmp_path, "first") as first, running(redis_url, tmp_path, "second") as second:
        assert first.claim() == "1"
        first.process.send_signal(signal.SIGSTOP)
        assert second.claim() == "nothing"
        assert heirs.claim("heir") is None
        assert heirs.get(asked.id).attempts == 1


def test_of_many_heirs_one_gets_the_job(redis_client: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    """They all see at the same time that the worker is dead."""
    queue_in(redis_client, None).submit(job())
    with ExitStack() as stack:
        first, *heirs = (stack.enter_context(running(redis_url, tmp_path, f"w{n}")) for n in range(4))
        assert first.claim() == "1"
        for turn in (2, 3):
            first.kill()
            for heir in heirs:
                heir.tell()
            got = [heir.read() for heir in heirs]
            assert sorted(got) == sorted([str(turn), *["nothing"] * (len(heirs) - 1)])
            first = heirs.pop(got.index(str(turn)))


@pytest.mark.parametrize("who", ["another home", "another machine", "nobody's"])
def test_who_cannot_know_waits_for_the_lease(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    if who == "another machine":
        (tmp_path / "boot").write_text("00000000-0000-0000-0000-000000000000\n")
        monkeypatch.setattr(presence, "_BOOT", tmp_path / "boot")
    home = {"another home": tmp_path / "b", "another machine": tmp_path / "a", "nobody's": None}[who]
    heirs = queue_in(redis_client, home)
    asked = heirs.submit(job())
    with running(redis_url, tmp_path / "a", "first") as first:
        assert first.claim() == "1"
        first.kill()
    assert heirs.claim("heir") is None
    assert heirs.get(asked.id).status is JobStatus.RUNNING


def test_a_job_that_kills_its_workers_is_given_up_all_the_same(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    heirs = queue_in(redis_client, tmp_path, max_deliveries=1)
    asked = heirs.submit(job())
    with running(redis_url, tmp_path, "first") as first:
        assert first.claim() == "1"
        first.kill()
    assert heirs.claim("heir") is None
    failed = heirs.get(asked.id)
    assert failed.error is not None
    assert failed.error.code == "too_many_attempts"


def test_the_claim_that_was_taken_over_can_write_nothing(redis_client: redis.Redis, tmp_path: Path) -> None:
    place = Presence.take(tmp_path / "run" / "workers")
    assert place is not None
    gone = JobQueue(redis_client, "strata", lease_seconds=LEASE_SECONDS, presence=place)
    gone.submit(job())
    left = taken(gone, "gone")
    place.leave()
    heir = taken(queue_in(redis_client, tmp_path), "heir")
    assert heir.fence > left.fence
    assert left.heartbeat() is False
    with pytest.raises(LeaseLost):
        left.finish("failed")


def test_what_redis_forgot_of_a_take_over_is_taken_over_again_and_nothing_is_written_twice(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    """Redis falls back to how it was while the worker lived that has died since, though its heir goes on."""
    heirs = queue_in(redis_client, tmp_path)
    heirs.submit(job())
    with running(redis_url, tmp_path, "first") as first:
        assert first.claim() == "1"
        keys: Any = redis_client.keys()
        before = {key: raw(redis_client, "DUMP", key) for key in keys}
        first.kill()
    heir = taken(heirs, "heir")
    redis_client.flushall()
    for key, value in before.items():
        raw(redis_client, "RESTORE", key, 0, value)
    last = taken(queue_in(redis_client, tmp_path), "last")
    assert last.job.id == heir.job.id
    assert last.fence > heir.fence
    assert heir.heartbeat() is False
    for write in (lambda: heir.update(phase="train"), lambda: heir.finish("failed")):
        with pytest.raises(LeaseLost):
            write()
    assert last.finish("succeeded", result_version="v1").status is JobStatus.SUCCEEDED


def raw(client: redis.Redis, *command: Any) -> Any:
    """Send a command whose answer is no text."""
    return client.execute_command(*command, NEVER_DECODE=True)


def test_a_place_that_was_left_knows_of_nobody(tmp_path: Path) -> None:
    """Its descriptor's number goes to the next file that is opened, where nobody holds a lock."""
    place, other = (Presence.take(tmp_path / "workers") for _ in range(2))
    assert place is not None
    assert other is not None
    number = place._handle
    place.leave()
    with (tmp_path / "another").open("w") as file:
        assert file.fileno() == number
        assert not place.has_ended(other.name)
        assert place.name == ""
        place.leave()
        assert os.fstat(file.fileno())
    other.leave()


def test_where_locks_are_granted_but_not_told_of_nobody_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some network file systems do: to ask always gives that nobody holds it."""
    ask = fcntl.fcntl

    def untold(handle: int, command: int, argument: bytes) -> int | bytes:
        answer = ask(handle, command, argument)
        free = struct.pack("h", fcntl.F_UNLCK) + argument[2:]
        return free if command == fcntl.F_OFD_GETLK else answer

    monkeypatch.setattr(fcntl, "fcntl", untold)
    opened = len(os.listdir("/proc/self/fd"))
    assert Presence.take(tmp_path / "workers") is None
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_worker_that_is_started_again_goes_on_with_its_job(site: Site, tmp_path: Path) -> None:
    """As ``strata up`` does it: the program is killed while it trains, and started once more."""
    asked = site.submit("colors", epochs=10_000)
    command = [sys.executable, "-m", "trainer_worker", *site.flags(), "--lease-seconds", str(LEASE_SECONDS)]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, stderr=log)
        try:
            wait_until(site, asked.id, lambda: site.queue.get(asked.id).phase == "train", first)
            left: Any = site.client.ttl(WRITER)
            assert left > LEASE_SECONDS / 2, "it is not to be waited for"
        finally:
            first.kill()
            first.wait()
        second = subprocess.Popen(command, stderr=log)
        try:
            wait_until(site, asked.id, lambda: site.queue.get(asked.id).attempts == 2, second)
            site.queue.cancel(asked.id)
            wait_until(site, asked.id, lambda: site.queue.get(asked.id).status.terminal, second)
        finally:
            second.kill()
            second.wait()
    assert site.queue.get(asked.id).status is JobStatus.CANCELLED


def wait_until(
    site: Site, job_id: str, condition: Callable[[], bool], process: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, "the worker has ended"
        assert time.monotonic() < deadline, site.queue.get(job_id)
        time.sleep(0.05)
