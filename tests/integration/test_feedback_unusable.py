"""What of a batch cannot be read or learned is set aside; all others are learned, and nothing is lost."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter_store.jobs import JobQueue
from server.feedback.pending import PendingStore
from tests.contract.pictures import png
from tests.integration.test_feedback_delivery import correction, desk

GOOD, BAD = correction(21), correction(20)


def to_itself(path: Path) -> None:
    """Put a link in a file's place that leads to itself: nobody can read it, whatever their rights."""
    path.unlink()
    path.symlink_to(path.name)


def damaged(path: Path) -> None:
    path.write_bytes(b"no picture any more")


def aside(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "feedback" / "animals" / "refused-unreadable").iterdir())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (Path.unlink, "the file of a picture is gone"),
        (to_itself, "the file of a picture cannot be read: Too many levels of symbolic links"),
        (damaged, "the bytes are not a JPEG, PNG, WEBP or GIF picture"),
    ],
)
async def test_one_picture_that_cannot_be_used_costs_only_its_own_correction(
    tmp_path: Path, redis_url: str, queue: JobQueue, spoil: Callable[[Path], None], reason: str
):
    here = desk(tmp_path, redis_url)
    store = here.store
    for one, size in ((BAD, 20), (GOOD, 21)):
        await asyncio.to_thread(store.keep, "animals", one, png("red", size))
    spoil(tmp_path / "feedback" / "animals" / "open" / f"{BAD.picture}.picture")
    job = await here.send("animals")
    assert [example.id for example in here._datasets.open(job.dataset.id).examples] == [GOOD.id]
    for known in (store, PendingStore(tmp_path / "feedback")):
        assert (known.standing("animals").count, known.standing("animals").refused) == (0, 1)
        assert known.job_of("animals", GOOD.id) == job.id
        found = known.found("animals", BAD.id)
        assert found is not None
        assert found.fate is not None
        assert (found.job, found.fate.status) == (None, "refused")
        assert reason in found.fate.reason
    assert store.take_set_aside() == 1
    kept = {f"{BAD.key}.json"} | (set() if spoil is Path.unlink else {f"{BAD.picture}.picture"})
    assert set(aside(tmp_path)) == kept


@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "in a batch"])
async def test_a_correction_that_stays_unreadable_does_not_keep_the_others(
    tmp_path: Path, redis_url: str, queue: JobQueue, caplog: pytest.LogCaptureFixture, is_closed: bool
):
    here = desk(tmp_path, redis_url)
    folder = tmp_path / "feedback" / "animals"
    for one, size in ((BAD, 20), (GOOD, 21)):
        await asyncio.to_thread(here.store.keep, "animals", one, png("red", size))
    if is_closed:
        await asyncio.to_thread(here.store.close, "animals")
        here = desk(tmp_path, redis_url)
    (spoiled,) = folder.glob(f"*/{BAD.key}.json")
    to_itself(spoiled)
    here = desk(tmp_path, redis_url)
    await asyncio.to_thread(here.store.keep, "animals", correction(22), png("red", 22))
    assert here.store.standing("animals").refused == 0, "the next look may find it whole"
    await here.send("animals")
    assert sum(job.dataset.examples for job in queue.list()) == 2
    said = [record for record in caplog.records if "passed over" in record.getMessage()]
    assert len(said) == 1
    assert here.store.standing("animals").count == 0
    assert here.store.standing("animals").refused == 1
    assert here.store.take_set_aside() == 1
    assert f"{BAD.key}.json" in aside(tmp_path)
    assert here.store.found("animals", BAD.id) is None, "this process never read which correction it is"
    assert (folder / "refused-unreadable" / f"{BAD.picture}.picture").read_bytes() == png("red", 20)
    assert sorted(path.name for path in folder.iterdir() if path.name != ".sending") == [
        "deliveries.json",
        "refused-unreadable",
    ]


async def test_what_was_read_once_is_learned_though_its_file_cannot_be_read_any_more(
    tmp_path: Path, redis_url: str, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    here = desk(tmp_path, redis_url)
    await asyncio.to_thread(here.store.keep, "animals", GOOD, png("red", 21))
    read = Path.read_bytes

    def bad_block(path: Path) -> bytes:
        if path.name == f"{GOOD.key}.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", bad_block)
    assert (await here.send("animals")).dataset.examples == 1
    assert here.store.standing("animals").refused == 0


async def test_a_batch_that_loses_a_picture_after_its_job_was_accepted_is_that_job(
    tmp_path: Path, redis_url: str, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    here = desk(tmp_path, redis_url)
    for one, size in ((BAD, 20), (GOOD, 21)):
        await asyncio.to_thread(here.store.keep, "animals", one, png("red", size))

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(PendingStore, "delivered", full)
    with pytest.raises(OSError, match="no space left"):
        await here.send("animals")
    monkeypatch.undo()
    (accepted,) = queue.list()
    (picture,) = (tmp_path / "feedback" / "animals").glob(f"batch-*/{BAD.picture}.picture")
    picture.unlink()
    assert (await here.send("animals")).id == accepted.id
    assert [job.id for job in queue.list()] == [accepted.id]
    assert here.store.job_of("animals", GOOD.id) == accepted.id


async def test_what_was_set_aside_and_is_given_again_is_followed_again(
    tmp_path: Path, redis_url: str, queue: JobQueue
):
    here = desk(tmp_path, redis_url)
    for one, size in ((BAD, 20), (GOOD, 21)):
        await asyncio.to_thread(here.store.keep, "animals", one, png("red", size))
    damaged(tmp_path / "feedback" / "animals" / "open" / f"{BAD.picture}.picture")
    await here.send("animals")
    await here.take("animals", BAD, png("red", 20))
    waits = here.store.found("animals", BAD.id)
    assert waits is not None
    assert (waits.job, waits.fate) == (None, None)
    job = await here.send("animals")
    sent = here.store.found("animals", BAD.id)
    assert sent is not None
    assert sent.job == job.id
