"""Several gateways on one home, disks that are slow, files that cannot be read, and the last word."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.feedback import pending
from server.feedback.corrections import Correction
from server.feedback.desk import FeedbackDesk, SendingPolicy
from server.feedback.locking import LockTaken, locked
from server.feedback.pending import PendingStore
from server.metrics import Metrics
from tests.unit.server.corrections import PICTURE, correction


def deliver(store: PendingStore, job: str) -> None:
    store.close("animals")
    for batch in store.batches("animals"):
        store.delivered("animals", batch, job)


def test_what_another_gateway_sent_is_no_fault_here(tmp_path: Path):
    one = PendingStore(tmp_path)
    one.keep("animals", correction(), PICTURE)
    other = PendingStore(tmp_path)
    assert other.standing("animals").count == 1
    deliver(other, "job-1")
    one.close("animals")
    assert one.batches("animals") == []
    assert one.job_of("animals", correction().id) == "job-1"
    one.keep("animals", correction(picture="cd" * 32), PICTURE)
    one.close("animals")
    (batch,) = one.batches("animals")
    assert {one.picture("animals", batch, kept) for kept in batch.corrections.values()} == {PICTURE}


def test_a_batch_that_another_gateway_took_out_is_not_taken_out_again(tmp_path: Path):
    one = PendingStore(tmp_path)
    one.keep("animals", correction(), PICTURE, close_at=1)
    (batch,) = one.batches("animals")
    deliver(PendingStore(tmp_path), "job-1")
    one.delivered("animals", batch, "job-1")
    one.set_aside("animals", batch, "no reason")
    assert one.standing("animals").last_job == "job-1"
    assert (one.standing("animals").refused, one.take_set_aside()) == (0, 0)


def test_what_another_gateway_closed_may_have_been_sent_before(tmp_path: Path):
    one, other = PendingStore(tmp_path), PendingStore(tmp_path)
    one.keep("animals", correction(), PICTURE, close_at=1)
    other.refresh()
    assert [batch.left_over for batch in (*one.batches("animals"), *other.batches("animals"))] == [
        False,
        True,
    ]


def test_the_same_correction_at_two_gateways_is_one(tmp_path: Path):
    one, other = PendingStore(tmp_path), PendingStore(tmp_path)
    assert one.keep("animals", correction(), PICTURE)
    assert not other.keep("animals", correction(), PICTURE)
    assert other.keep("animals", correction("a lion", since=200.0), PICTURE)
    one.refresh("animals")
    assert one.standing("animals") == other.standing("animals")
    assert (one.standing("animals").count, one.standing("animals").oldest) == (1, 100.0)


def test_a_lock_is_held_by_one_and_gone_with_its_holder(tmp_path: Path):
    holder = "import sys, pathlib, time; from server.feedback.locking import locked\n"
    holder += "with locked(pathlib.Path(sys.argv[1]), 5): print('held', flush=True); time.sleep(600)"
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LockTaken, match="another gateway"), locked(path, 0.05):
            pass
        process.kill()
        process.wait(10)
    with locked(path, 5), pytest.raises(LockTaken), locked(path, 0.05):
        pass


WORKER = """
import sys
from pathlib import Path
from server.feedback.corrections import Correction
from server.feedback.pending import PendingStore
store, name = PendingStore(Path(sys.argv[1])), int(sys.argv[2])
for number in range(60):
    picture = f"{name * 1000 + number:064x}"
    one = Correction("What?", "a cat", picture, "", "down", None, None, 1.0)
    assert store.keep("animals", one, picture.encode(), close_at=5)
    for batch in store.batches("animals") if number % 4 == 0 else ():
        try:
            kept = [store.picture("animals", batch, one).decode() for one in batch.corrections.values()]
        except FileNotFoundError:
            continue  # the other one sent it
        print(batch.name, *kept, flush=True)
        store.delivered("animals", batch, batch.name)
"""


def test_two_processes_lose_nothing(tmp_path: Path):
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(name)], stdout=subprocess.PIPE, text=True
        )
        for name in (1, 2)
    ]
    said = "".join(program.communicate(timeout=120)[0] for program in programs)
    assert [program.returncode for program in programs] == [0, 0]
    sent = {name: set(pictures) for name, *pictures in map(str.split, said.splitlines())}
    store = PendingStore(tmp_path)
    store.close("animals")
    for batch in store.batches("animals"):
        sent[batch.name] = {one.picture for one in batch.corrections.values()}
    every = [picture for pictures in sent.values() for picture in pictures]
    assert sorted(every) == sorted(f"{name * 1000 + number:064x}" for name in (1, 2) for number in range(60))


def test_the_last_word_is_kept_whatever_was_said_before(tmp_path: Path):
    store = PendingStore(tmp_path)
    store.keep("animals", correction("a cat"), PICTURE)
    deliver(store, "job-1")
    assert store.job_of("animals", correction("a cat").id) == "job-1"
    store.keep("animals", correction("a dog"), PICTURE)
    assert store.job_of("animals", correction("a cat").id) is None
    assert store.keep("animals", correction("a cat"), PICTURE)
    assert [one.right for one in store._known("animals").all()] == ["a cat"]
    store.keep("animals", correction("a dog"), PICTURE)
    deliver(store, "job-2")
    for known in (store, PendingStore(tmp_path)):
        assert known.job_of("animals", correction("a cat").id) is None
        assert known.job_of("animals", correction("a dog").id) == "job-2"
    assert store.keep("animals", correction("a cat"), PICTURE)


class StuckDisk:
    """Makes nothing durable until it is freed."""

    def __init__(self) -> None:
        self.is_waited_for, self._freed, self._sync = threading.Event(), threading.Event(), os.fsync

    def sync(self, handle: int) -> None:
        self.is_waited_for.set()
        self._freed.wait(60)
        self._sync(handle)

    def free(self) -> None:
        self._freed.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckDisk]:
    stuck = StuckDisk()
    monkeypatch.setattr(os, "fsync", stuck.sync)
    yield stuck
    stuck.free()


def test_what_the_event_loop_reads_waits_for_no_disk(tmp_path: Path, disk: StuckDisk):
    (tmp_path / "animals").mkdir()
    store = PendingStore(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        keeping = threads.submit(store.keep, "animals", correction(), PICTURE)
        assert disk.is_waited_for.wait(30)
        reading = threads.submit(
            lambda: (
                store.tasks(),
                store.standing("animals").count,
                store.batches("animals"),
                store.job_of("animals", "fb-1"),
                store.take_set_aside(),
            )
        )
        try:
            assert reading.result(timeout=20) == ([], 0, [], None, 0)
            assert not keeping.done()
        finally:
            disk.free()
        assert keeping.result(timeout=60)
    assert store.standing("animals").count == 1


def lonely_desk(folder: Path) -> FeedbackDesk:
    """Return a desk that takes in and never gets to send."""
    rest: Any = None
    policy = SendingPolicy(8, 0)
    store = PendingStore(folder)
    return FeedbackDesk(
        store, datasets=rest, submissions=rest, journal=rest, policy=policy, metrics=Metrics()
    )


async def test_the_event_loop_goes_on_while_a_correction_is_written(tmp_path: Path, disk: StuckDisk):
    desk = lonely_desk(tmp_path)
    rescue = threading.Timer(20, disk.free)
    rescue.start()
    watching = asyncio.create_task(desk.watch())
    taking = asyncio.create_task(desk.take("animals", correction(), PICTURE))
    assert await asyncio.to_thread(disk.is_waited_for.wait, 15)
    began = time.monotonic()
    for _ in range(20):
        await asyncio.sleep(0.05)
        assert desk.listed() == []
        assert desk.pending("animals")["count"] == 0
    assert time.monotonic() - began < 15
    assert not taking.done()
    disk.free()
    rescue.cancel()
    assert await taking
    assert desk.pending("animals")["count"] == 1
    watching.cancel()


def test_what_cannot_be_read_survives_the_delivery_of_the_others(tmp_path: Path):
    store = PendingStore(tmp_path)
    store.keep("animals", correction(), b"the picture of the lost one")
    store.keep("animals", correction(picture="cd" * 32), PICTURE)
    (lost,) = (tmp_path / "animals" / "open").glob(f"{correction().key}.json")
    content = lost.read_bytes().replace(b'"since"', b'"since2"')
    lost.write_bytes(content)
    again = PendingStore(tmp_path)
    assert (again.standing("animals").count, again.standing("animals").refused) == (1, 1)
    assert again.take_set_aside() == 1
    again.refresh()
    assert again.take_set_aside() == 0
    deliver(again, "job-1")
    aside = tmp_path / "animals" / "refused-unreadable"
    assert (aside / lost.name).read_bytes() == content
    assert (aside / f"{'ab' * 32}.picture").read_bytes() == b"the picture of the lost one"
    assert PendingStore(tmp_path).standing("animals").refused == 1


def test_a_closed_batch_without_anything_to_read_is_set_aside(tmp_path: Path):
    store = PendingStore(tmp_path)
    store.keep("animals", correction(), PICTURE, close_at=1)
    (batch,) = store.batches("animals")
    (lost,) = (tmp_path / "animals" / batch.name).glob("*.json")
    lost.write_text("[" * 100_000)
    again = PendingStore(tmp_path)
    assert again.batches("animals") == []
    assert (tmp_path / "animals" / f"refused-{batch.name}" / f"{'ab' * 32}.picture").exists()
    assert (tmp_path / "animals" / "refused-unreadable" / lost.name).exists()
    assert again.tasks() == ["animals"]


@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "in a batch"])
def test_a_disk_that_fails_once_costs_no_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_closed: bool
):
    writer = PendingStore(tmp_path)
    writer.keep("animals", correction(), PICTURE)
    writer.keep("animals", correction(picture="cd" * 32), PICTURE, close_at=2 if is_closed else 9)
    read, failures = Path.read_bytes, [errno.EIO]

    def flaky(path: Path) -> bytes:
        if failures and path.suffix == ".json" and path.name != "deliveries.json":
            raise OSError(failures.pop(), "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", flaky)
    store = PendingStore(tmp_path)
    assert failures == []
    assert (store.standing("animals").count, store.standing("animals").refused) == (1, 0)
    store.refresh()
    assert (store.standing("animals").count, store.standing("animals").refused) == (2, 0)
    store.close("animals")
    (batch,) = store.batches("animals")
    assert [store.picture("animals", batch, one) for one in batch.corrections.values()] == [PICTURE] * 2
    assert store.take_set_aside() == 0


def test_a_task_that_cannot_be_read_does_not_refuse_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pending, "MOST_TASKS", 2)
    store = PendingStore(tmp_path)
    for task in ("animals", "birds"):
        store.keep(task, correction(), PICTURE)
    store.close("birds")
    store.delivered("birds", store.batches("birds")[0], "job-1")
    (tmp_path / "animals" / "deliveries.json").mkdir()
    assert store.keep("cows", correction(), PICTURE)
    assert (tmp_path / "animals" / "open").is_dir()


@pytest.mark.parametrize("content", [[], 5, None, "x", {}, {"question": 1}])
def test_what_is_no_correction_is_refused(content: Any):
    with pytest.raises((ValueError, TypeError)):
        Correction.of(content)


def test_fields_of_a_later_release_are_ignored():
    one = correction()
    assert Correction.of({**json.loads(one.line()), "color": "red"}) == one


def test_a_list_of_jobs_that_cannot_be_read_is_said_once(tmp_path: Path):
    store = PendingStore(tmp_path)
    store.keep("animals", correction(), PICTURE)
    deliver(store, "job-1")
    (tmp_path / "animals" / "deliveries.json").write_text('[{"job": "job-1", "ids": ["fb-1"]}]')
    again = PendingStore(tmp_path)
    assert again.tasks() == []
    assert [path.name for path in (tmp_path / "animals").iterdir()] == ["deliveries.unreadable"]


def test_a_task_that_cannot_be_looked_at_hides_no_other(tmp_path: Path):
    store = PendingStore(tmp_path)
    other = PendingStore(tmp_path)
    for task in ("animals", "birds", "cows"):
        other.keep(task, correction(), PICTURE)
    (tmp_path / "birds" / "deliveries.json").mkdir()
    with pytest.raises(IsADirectoryError):
        store.refresh()
    assert store.tasks() == ["animals", "cows"]


def test_the_bound_on_tasks_holds_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pending, "MOST_TASKS", 3)
    store = PendingStore(tmp_path)
    for number in range(8):
        name = f"task-{number}"
        store.keep(name, correction(), PICTURE, close_at=1)
        store.delivered(name, store.batches(name)[0], f"job-{number}")
        if number == 3:
            (tmp_path / name / "refused-something").mkdir()
    kept = PendingStore(tmp_path).tasks()
    assert len(kept) == 3
    assert {"task-3", "task-7"} <= set(kept)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == kept
