"""What is corrected waits on disk: once, in its newest form, through a kill, until its job is accepted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from server.feedback import pending
from server.feedback import thumbs as thumbs_module
from server.feedback.pending import FeedbackFull, PendingStore
from server.feedback.thumbs import MOST_VERSIONS, Thumbs
from tests.unit.server.corrections import PICTURE, correction


def test_thumbs_are_counted_by_version_and_bounded():
    thumbs = Thumbs()
    for rating in ("up", "down", "up"):
        thumbs.count("v1", rating)
    assert thumbs.read() == {"v1": (2, 1)}
    for number in range(2, MOST_VERSIONS + 2):
        thumbs.count(f"v{number}", "down")
    assert len(thumbs.read()) == MOST_VERSIONS
    assert "v1" not in thumbs.read()
    thumbs.count("v2", "up")
    thumbs.count("v99", "up")
    assert thumbs.read()["v2"] == (1, 1)


def test_an_answer_has_one_thumb_the_last():
    thumbs = Thumbs()
    assert thumbs.count("v1", "down", answer="a")
    assert not thumbs.count("v1", "down", answer="a")
    assert thumbs.read() == {"v1": (0, 1)}
    assert thumbs.count("v1", "up", answer="a")
    assert thumbs.count("v1", "up", answer="b")
    assert thumbs.read() == {"v1": (2, 0)}
    assert thumbs.count("v2", "up", answer="a")
    assert thumbs.read() == {"v1": (1, 0), "v2": (1, 0)}


def test_answers_that_were_rated_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(thumbs_module, "MOST_ANSWERS", 2)
    thumbs = Thumbs()
    for answer in ("a", "b", "a", "c"):
        thumbs.count("v1", "down", answer=answer)
    assert not thumbs.count("v1", "down", answer="a")  # rated after b, so b went
    assert thumbs.count("v1", "down", answer="b")


def test_the_same_correction_twice_is_one_example(tmp_path: Path):
    store = PendingStore(tmp_path)
    assert store.keep("animals", correction(), PICTURE)
    assert not store.keep("animals", correction(since=200.0), PICTURE)
    assert store.standing("animals").count == 1
    store.close("animals")
    assert not store.keep("animals", correction(since=300.0), PICTURE)
    assert store.standing("animals").count == 1


def test_a_later_correction_replaces_the_earlier_and_does_not_wait_longer(tmp_path: Path):
    store = PendingStore(tmp_path)
    store.keep("animals", correction(), PICTURE)
    store.keep("animals", correction("a tiger", since=200.0), PICTURE)
    store.keep("animals", correction("a lion", picture="cd" * 32, since=150.0), PICTURE)
    for known in (store, PendingStore(tmp_path)):
        standing = known.standing("animals")
        assert (standing.count, standing.oldest) == (2, 100.0)
    again = PendingStore(tmp_path)
    again.close("animals")
    (batch,) = again.batches("animals")
    assert sorted(one.right for one in batch.corrections.values()) == ["a lion", "a tiger"]
    assert all(again.picture("animals", batch, one) == PICTURE for one in batch.corrections.values())


def test_at_the_count_what_is_open_becomes_a_batch(tmp_path: Path):
    store = PendingStore(tmp_path)
    for number in range(5):
        store.keep("animals", correction(picture=f"{number:064x}"), PICTURE, close_at=2)
    assert [len(batch.corrections) for batch in store.batches("animals")] == [2, 2]
    assert (store.standing("animals").count, store.standing("animals").open) == (5, 1)


def test_a_closed_batch_keeps_its_name_until_its_job_is_accepted(tmp_path: Path):
    store = PendingStore(tmp_path)
    store.keep("animals", correction(), PICTURE)
    store.close("animals")
    store.close("animals")
    (batch,) = store.batches("animals")
    assert not batch.left_over
    again = PendingStore(tmp_path)
    (found,) = again.batches("animals")
    assert (found.name, found.left_over) == (batch.name, True)
    again.delivered("animals", found, "job-1")
    assert again.standing("animals").count == 0
    assert [path.name for path in (tmp_path / "animals").iterdir()] == ["deliveries.json"]
    for known in (again, PendingStore(tmp_path)):
        assert known.job_of("animals", correction().id) == "job-1"
        assert known.standing("animals").last_job == "job-1"
    assert again.keep("animals", correction(), PICTURE)
    assert again.job_of("animals", correction().id) is None


def test_what_a_kill_leaves_between_rename_and_removal_is_swept(tmp_path: Path):
    store = PendingStore(tmp_path)
    store.keep("animals", correction(), PICTURE)
    store.close("animals")
    (batch,) = store.batches("animals")
    folder = tmp_path / "animals"
    (folder / batch.name).rename(folder / f"done-{batch.name}")
    assert PendingStore(tmp_path).tasks() == []
    assert list(folder.iterdir()) == []


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path: Path):
    store = PendingStore(tmp_path)
    store.keep("animals", correction(), PICTURE)
    (tmp_path / "animals" / "open" / "broken.json").write_text("{")
    (tmp_path / "animals" / "open" / "foreign.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "NOT A TASK").mkdir()
    assert PendingStore(tmp_path).standing("animals").count == 1


def test_waiting_corrections_and_tasks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pending, "MOST_WAITING", 2)
    monkeypatch.setattr(pending, "MOST_TASKS", 2)
    store = PendingStore(tmp_path)
    for number in range(2):
        store.keep("animals", correction(picture=f"{number:064x}"), PICTURE)
    with pytest.raises(FeedbackFull, match="2 corrections of animals wait already"):
        store.keep("animals", correction(picture=f"{9:064x}"), PICTURE)
    store.keep("birds", correction(), PICTURE)
    with pytest.raises(FeedbackFull, match="2 tasks"):
        store.keep("cows", correction(), PICTURE)
    store.close("birds")
    store.delivered("birds", store.batches("birds")[0], "job-1")
    assert store.keep("cows", correction(), PICTURE)


def test_an_id_names_picture_question_and_answer():
    one = correction()
    changes: list[dict[str, str]] = [{"right": "x"}, {"question": "y"}, {"picture": "z"}]
    assert one.id == replace(one, since=5.0, rating="up", answer="?").id
    assert len({one.id, *(replace(one, **change).id for change in changes)}) == 4
    assert one.key == replace(one, right="x").key


WRITER = """
import sys
from pathlib import Path
from server.feedback.corrections import Correction
from server.feedback.pending import PendingStore
store = PendingStore(Path(sys.argv[1]))
number = 0
while True:
    correction = Correction("What?", "a cat", f"{number:064x}", "", "down", None, None, 1.0)
    store.keep("animals", correction, b"p" * 4096)
    print(number, flush=True)
    number += 1
    if number % 7 == 0:
        store.close("animals")
"""


def test_what_was_confirmed_survives_kill_9(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    with process.stdout:
        confirmed = [int(process.stdout.readline()) for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        confirmed += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait(10)
    store = PendingStore(tmp_path)
    store.close("animals")
    kept = {
        int(one.picture, 16): store.picture("animals", batch, one)
        for batch in store.batches("animals")
        for one in batch.corrections.values()
    }
    assert set(confirmed) <= set(kept)
    assert set(kept.values()) == {b"p" * 4096}
