"""What a disk does not give for a moment is not lost, and what became of it is told as far as it is known."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.feedback.pending import PendingStore
from tests.unit.server.corrections import PICTURE, correction

CAT, OTHER = correction(), correction(picture="cd" * 32)


def status(store: PendingStore, identity: str) -> str | None:
    """Return what the store tells of a correction: the status of its end, its job, or that it waits."""
    found = store.found("animals", identity)
    if found is None:
        return None
    return found.fate.status if found.fate is not None else found.job or "pending"


def deliver(store: PendingStore) -> None:
    for batch in store.batches("animals"):
        store.delivered("animals", batch, "job-1")


def to_itself(path: Path) -> None:
    """Put a link in a file's place that leads to itself: nobody can read it, whatever their rights."""
    path.unlink()
    path.symlink_to(path.name)


def replaced_by(home: Path, right: str) -> PendingStore:
    """Return a store of which one correction was replaced."""
    store = PendingStore(home)
    store.keep("animals", CAT, PICTURE)
    store.keep("animals", correction(right), PICTURE)
    assert status(store, CAT.id) == "replaced"
    return store


def of_fates(function: Callable[[Path], bytes], fault: int | None, seen: list[Path]) -> Any:
    """Return ``function`` that notes how often fates are read, and fails at it."""

    def read(path: Path) -> bytes:
        if path.name == "fates.json":
            seen.append(path)
            if fault is not None:
                raise OSError(fault, os.strerror(fault), str(path))
        return function(path)

    return read


@pytest.mark.parametrize("fault", [errno.EIO, errno.EMFILE])
def test_fates_that_cannot_be_read_for_a_moment_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
):
    here, there = replaced_by(tmp_path, "a dog"), PendingStore(tmp_path)
    there.keep("animals", correction("a lion"), PICTURE)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", of_fates(Path.read_bytes, fault, []))
        if fault == errno.EMFILE:
            with pytest.raises(OSError, match="open files"):
                here.refresh()
        else:
            here.refresh()
        assert status(here, CAT.id) == "replaced"
        late = PendingStore(tmp_path)
    for store in (here, late):
        store.refresh()
        assert status(store, CAT.id) == status(store, correction("a dog").id) == "replaced"
        assert status(store, correction("a lion").id) == "pending"


def test_fates_are_read_again_only_after_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here, there = replaced_by(tmp_path, "a dog"), PendingStore(tmp_path)
    seen: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", of_fates(Path.read_bytes, None, seen))
    here.refresh()
    here.refresh()
    assert seen == []
    there.keep("animals", correction("a lion"), PICTURE)
    seen.clear()
    here.refresh()
    here.refresh()
    assert len(seen) == 1
    assert status(here, correction("a dog").id) == "replaced"


def unlisted(folder: Path, fault: int) -> Any:
    scandir = os.scandir

    def scan(path: Any) -> Any:
        if Path(path) == folder:
            raise OSError(fault, os.strerror(fault), str(path))
        return scandir(path)

    return scan


@pytest.mark.parametrize("fault", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("is_new", [False, True], ids=["known when it was open", "after a restart"])
def test_a_batch_that_cannot_be_listed_for_a_moment_is_learned_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, is_new: bool
):
    here, there = PendingStore(tmp_path), PendingStore(tmp_path)
    there.keep("animals", CAT, PICTURE)
    here.refresh()
    there.close("animals")
    (batch,) = there.batches("animals")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", unlisted(tmp_path / "animals" / batch.name, fault))
        if is_new:
            here = PendingStore(tmp_path)
        for _ in range(2):
            here.refresh()
            assert (here.standing("animals").count, here.standing("animals").refused) == (0, 0)
            assert here.tasks() == ["animals"]
            assert status(here, CAT.id) == (None if is_new else "pending")
    here.refresh()
    assert (here.standing("animals").count, here.standing("animals").refused) == (1, 0)
    assert (status(here, CAT.id), here.take_set_aside()) == ("pending", 0)
    deliver(here)
    assert status(here, CAT.id) == "job-1"


def test_open_corrections_that_cannot_be_listed_for_a_moment_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = PendingStore(tmp_path)
    store.keep("animals", CAT, PICTURE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", unlisted(tmp_path / "animals" / "open", errno.EACCES))
        store.close("animals")
        assert (status(store, CAT.id), store.batches("animals")) == ("pending", [])
        patch.setattr(os, "scandir", unlisted(tmp_path / "animals" / "open", errno.EMFILE))
        with pytest.raises(OSError, match="open files"):
            store.refresh()
    store.close("animals")
    assert len(store.batches("animals")) == 1


def test_nothing_of_a_batch_goes_that_cannot_be_listed_when_it_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writer = PendingStore(tmp_path)
    writer.keep("animals", CAT, PICTURE)
    writer.keep("animals", OTHER, PICTURE, close_at=2)
    (lost,) = (tmp_path / "animals").glob(f"batch-*/{CAT.key}.json")
    content = lost.read_bytes()
    to_itself(lost)
    store = PendingStore(tmp_path)
    (batch,) = store.batches("animals")
    lost.unlink()
    lost.write_bytes(content)
    store.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", unlisted(lost.parent, errno.EACCES))
        with pytest.raises(PermissionError):
            store.delivered("animals", batch, "job-1")
    assert lost.read_bytes() == content
    assert status(store, CAT.id) == "pending"
    store.delivered("animals", batch, "job-1")
    assert (tmp_path / "animals" / "refused-unreadable" / lost.name).read_bytes() == content
    assert (status(store, CAT.id), status(store, OTHER.id)) == ("refused", "job-1")


@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "in a batch"])
def test_a_correction_whose_file_cannot_be_read_waits_until_the_others_are_sent(
    tmp_path: Path, is_closed: bool
):
    here, there = PendingStore(tmp_path), PendingStore(tmp_path)
    for one in (CAT, OTHER):
        there.keep("animals", one, PICTURE)
    here.refresh()
    if is_closed:
        there.close("animals")
    (lost,) = (tmp_path / "animals").glob(f"*/{CAT.key}.json")
    to_itself(lost)
    for _ in range(2):
        here.refresh()
        assert (status(here, CAT.id), here.standing("animals").count) == ("pending", 1)
    here.close("animals")
    assert status(here, CAT.id) == "pending"
    deliver(here)
    for store in (here, PendingStore(tmp_path)):
        found = store.found("animals", CAT.id)
        assert found is not None
        assert found.fate is not None
        assert "could not be read when the others" in found.fate.reason
        assert status(store, OTHER.id) == "job-1"
    there.keep("animals", CAT, PICTURE)
    here.refresh()
    assert status(here, CAT.id) == "pending"


def test_a_batch_set_aside_tells_it_of_what_could_not_be_read(tmp_path: Path):
    store = PendingStore(tmp_path)
    for one in (CAT, OTHER):
        store.keep("animals", one, PICTURE)
    to_itself(tmp_path / "animals" / "open" / f"{CAT.key}.json")
    store.close("animals")
    (batch,) = store.batches("animals")
    store.set_aside("animals", batch, "no reason")
    assert status(store, CAT.id) == status(store, OTHER.id) == "refused"


@pytest.mark.parametrize(("right", "end"), [("a cat", "pending"), ("a lion", "replaced")])
def test_an_answer_in_the_place_of_one_that_cannot_be_read(tmp_path: Path, right: str, end: str):
    store = PendingStore(tmp_path)
    store.keep("animals", CAT, PICTURE)
    to_itself(tmp_path / "animals" / "open" / f"{CAT.key}.json")
    assert store.keep("animals", correction(right), PICTURE)
    assert (status(store, CAT.id), status(store, correction(right).id)) == (end, "pending")


def test_what_is_damaged_twice_is_kept_twice(tmp_path: Path):
    store = PendingStore(tmp_path)
    rights = ("a cat", "a lion", "a tiger")
    for right in rights:
        store.keep("animals", correction(right), PICTURE)
        path = tmp_path / "animals" / "open" / f"{CAT.key}.json"
        path.write_bytes(path.read_bytes()[:-1])
        store.refresh()
        assert status(store, correction(right).id) == "refused"
    kept = sorted((tmp_path / "animals" / "refused-unreadable").glob("*.json"))
    assert len(kept) == 3
    assert all(any(right in path.read_text() for path in kept) for right in rights)
