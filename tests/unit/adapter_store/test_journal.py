"""Accepted jobs on disk; what happens with Redis is tested with a real one elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from adapter_store.datasets.records import DatasetRef
from adapter_store.errors import InputError
from adapter_store.jobs import Job, JobError, JobJournal, JobStatus, new_job_id

REF = DatasetRef("ds-0123456789abcdef", 3, 2, "d" * 64)


def job(**fields) -> Job:
    return Job(lineage="strata", dataset=REF, **fields)


def test_a_recorded_job_comes_back_equal(tmp_path: Path) -> None:
    journal = JobJournal(tmp_path / "a" / "jobs")
    first = job(task="digits", hyperparameters={"epochs": 2, "lr": 1e-3, "mode": "fixed", "share": True})
    journal.record(first)
    again = JobJournal(tmp_path / "a" / "jobs")
    assert again.get(first.id) == first
    assert again.pending() == [first]
    assert type(again.pending()[0].hyperparameters["epochs"]) is int
    assert again.pending()[0].hyperparameters["share"] is True


def test_pending_leaves_out_what_has_an_outcome_and_keeps_the_order(tmp_path: Path) -> None:
    journal = JobJournal(tmp_path)
    late, early, done = job(created_at=20.0), job(created_at=10.0), job(created_at=5.0)
    for one in (late, early, done):
        journal.record(one)
    ended = done.model_copy(update={"status": JobStatus.FAILED, "error": JobError(code="x", message="y")})
    journal.record(ended)
    assert journal.pending() == [early, late]
    assert journal.all() == [ended, early, late]


def test_an_outcome_is_never_taken_back(tmp_path: Path) -> None:
    journal = JobJournal(tmp_path)
    one = job()
    journal.record(one.model_copy(update={"status": JobStatus.SUCCEEDED, "result_version": "v1"}))
    journal.record(one.model_copy(update={"status": JobStatus.RUNNING}))
    kept = journal.get(one.id)
    assert kept is not None
    assert kept.status is JobStatus.SUCCEEDED


def test_forget_and_unknown(tmp_path: Path) -> None:
    journal = JobJournal(tmp_path)
    one = job()
    journal.record(one)
    journal.forget(one.id)
    journal.forget(one.id)
    assert journal.get(one.id) is None
    assert journal.all() == []


def test_a_damaged_file_is_left_alone_and_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = JobJournal(tmp_path)
    one = job()
    journal.record(one)
    broken = tmp_path / f"{new_job_id()}.json"
    broken.write_text('{"id": "job-')
    assert journal.pending() == [one]
    assert broken.name in caplog.text
    assert broken.exists()


@pytest.mark.parametrize(
    "name", ["job-../../etc/passwd", "../job-1", "job-", "job-a/b", "job-a\n", "JOB-1", ""]
)
def test_ids_that_would_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    journal = JobJournal(tmp_path / "jobs")
    with pytest.raises(InputError, match="not allowed"):
        journal.get(name)
    with pytest.raises(ValidationError, match="not allowed"):
        job(id=name)


def test_a_job_refuses_unknown_fields_and_bad_names() -> None:
    with pytest.raises(ValidationError, match="epochs"):
        job(epochs=3)
    with pytest.raises(ValidationError, match="not allowed"):
        job(task="../digits")


def test_ids_sort_by_time() -> None:
    ids = [new_job_id() for _ in range(3)]
    assert len(set(ids)) == 3
    assert sorted(i[:16] for i in ids) == [i[:16] for i in ids]


def test_fingerprint_follows_the_request_and_not_its_progress() -> None:
    one = job(task="digits")
    assert one.fingerprint == job(task="digits", status="running", attempts=2).fingerprint
    assert one.fingerprint != job(task="animals").fingerprint
    unnamed = job(task=None)
    named = unnamed.model_copy(update={"task": "task-1"})
    assert Job.model_validate_json(named.model_dump_json()).fingerprint == unnamed.fingerprint


KILLED = """
import os, signal, sys
from pathlib import Path
from adapter_store.datasets.records import DatasetRef
from adapter_store.jobs import Job, JobJournal

real = os.replace
def replace(a, b):
    if os.environ["WHEN"] == "after":
        real(a, b)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
JobJournal(Path(sys.argv[1])).record(
    Job(id="job-one", lineage="strata", dataset=DatasetRef("ds-1", 1, 1, "d"), status="succeeded"))
"""


@pytest.mark.parametrize(("when", "status"), [("before", "validating_files"), ("after", "succeeded")])
def test_killed_while_recording_leaves_the_old_record_or_the_new(
    tmp_path: Path, when: str, status: str
) -> None:
    journal = JobJournal(tmp_path)
    journal.record(job(id="job-one"))
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    ended = subprocess.run(command, env={"WHEN": when, "PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert ended.returncode == -9, ended.stderr
    assert json.loads((tmp_path / "job-one.json").read_text())["status"] == status
    assert [one.status for one in journal.all()] == [status]
