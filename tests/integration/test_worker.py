"""The worker against a real Redis and the tiny base: jobs end once, whatever dies in between."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time

import pytest

from adapter_store.jobs import Job, JobStatus
from adapter_store.state import AdapterState
from adapter_store.versions import VersionStore
from tests.integration.dying_worker import work_until_killed
from tests.integration.working import Site
from trainer_worker.heldout import HeldOut, picture_key


@pytest.fixture(scope="module")
def spawning():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "transformers", "trainer_worker.opening", "trainer_worker.worker"]
    )
    return context


def test_a_job_goes_through_all_phases_to_a_stable_version(site: Site):
    job = site.finish(site.submit("colors"))
    assert (job.status, job.result_version, job.decision) == (JobStatus.SUCCEEDED, "v1", "expand"), job
    assert job.gate is not None
    assert job.gate["promotion"] == "promoted"
    events = site.queue.events(job.id, limit=500)
    phases = [event.data["phase"] for event in events if event.type == "phase"]
    assert phases == ["validate", "encode", "decide", "keys", "train", "evaluate", "gate", "publish"]
    assert [event.data for event in events if event.type == "metrics"][-1]["loss"] > 0
    manifest = site.versions.manifest("v1")
    assert manifest.accuracy.tasks == ("colors",)
    assert manifest.probe is not None
    assert set(phases) - {"publish"} <= set(manifest.seconds)
    AdapterState.load(site.versions.fetch("v1"), base_digest=manifest.base_digest)
    assert site.versions.aliases.get("stable").version == "v1"  # type: ignore[union-attr]


def test_settings_of_a_lineage_stay_with_a_warning_and_a_fixed_tau_applies(site: Site):
    site.finish(site.submit("colors", epochs=2))
    site.versions.aliases.move("stable", "v1", expected_revision=0, reason="by hand", actor="test")
    site.settings = site.settings.model_copy(update={"rank": 8, "top_m": 3, "tau": 0.25})
    second = site.finish(site.submit("shades", "Say what you see in this picture, please.", epochs=2))
    warned = [event for event in site.queue.events(second.id, limit=500) if event.level == "warn"]
    assert {"STRATA_RANK": "4, not 8", "STRATA_TOP_M": "2, not 3"} in [event.data for event in warned]
    version = second.result_version
    assert version is not None
    state = AdapterState.load(site.versions.fetch(version), base_digest=None)
    assert (state.rank, state.routing.top_m, state.routing.tau) == (4, 2, 0.25)


def test_a_second_task_builds_on_the_first_and_a_known_one_is_retrained(site: Site):
    site.finish(site.submit("colors"))
    second = site.finish(site.submit("shades", "Say what you see in this picture, please."))
    assert (second.decision, second.status) == ("expand", JobStatus.SUCCEEDED)
    third = site.finish(site.submit(None, "Which color?", count=18))
    assert (third.decision, third.task) == ("retrain", "colors")
    manifest = site.versions.manifest("v3")
    assert manifest.accuracy.trained == ("colors", "shades", "colors")
    assert manifest.splits["shades"].since == 1
    assert manifest.splits["colors"].since in (0, 2)
    states = [AdapterState.load(site.versions.fetch(v), base_digest=None) for v in ("v1", "v2")]
    old = states[0].rows_of("colors")
    assert states[1].up["o_proj"][:, old].equal(states[0].up["o_proj"])


def test_training_sees_neither_held_out_pictures_nor_earlier_data(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    import trainer_worker.pipeline as pipeline

    seen: list[set[str]] = []
    original = pipeline.learn

    def spy(replicas, state, task, lesson, settings, **kwargs):
        used = [lesson.encoded.examples[i] for i in (*lesson.train, *lesson.validation)]
        seen.append({picture_key(example) for example in used})
        behind = {picture_key(example) for example in lesson.encoded.examples}
        assert len(behind) == 15  # nothing but the batch itself is at hand
        return original(replicas, state, task, lesson, settings, **kwargs)

    monkeypatch.setattr(pipeline, "learn", spy)
    site.finish(site.submit("colors", epochs=1))
    site.finish(site.submit("shades", "What do you see?", epochs=1))
    held_out = HeldOut(site.home / "heldout" / "strata")
    for task, used in zip(("colors", "shades"), seen, strict=True):
        assert used & held_out.record(task).held_out == set()
        assert used == held_out.record(task).trained
    assert seen[0] | held_out.record("colors").held_out == seen[1] | held_out.record("shades").held_out


def test_a_grown_held_out_set_is_compared_with_the_parent_scored_on_it(site: Site):
    site.finish(site.submit("colors"))
    first = site.versions.manifest("v1").splits["colors"]
    for path in (site.home / "heldout" / "strata" / "colors").glob("split.json"):
        path.unlink()  # as if the worker had died before it wrote what it did
    job = site.finish(site.submit("colors", count=40))
    second = site.versions.manifest("v2").splits["colors"]
    assert (job.decision, first.since, second.since) == ("retrain", 0, 1)
    held_out = HeldOut(site.home / "heldout" / "strata")
    data = [held_out.dataset("colors", split.dataset_id) for split in (first, second)]
    assert len(data[0].examples) < len(data[1].examples)  # type: ignore[union-attr]
    told = [e.data for e in site.queue.events(job.id, limit=500) if "before" in e.data]
    assert told[0]["before"]["colors"] is not None


def test_one_example_is_enough(site: Site):
    job = site.finish(site.submit("colors", count=1))
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert site.versions.manifest("v1").accuracy.rows == ((None,),)


def test_bad_jobs_fail_with_a_reason_and_the_next_one_runs(site: Site):
    job = site.finish(site.submit("colors", speed="fast"))
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert "speed" in job.error.message
    assert site.versions.list() == []
    assert site.finish(site.submit("colors", epochs=1)).status is JobStatus.SUCCEEDED


def test_a_store_that_is_away_uses_up_no_attempt(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer_worker.worker.OUTAGE_SECONDS", (0.05,))
    away = iter(range(6))  # twice as often as a job may be delivered
    raise_fence = VersionStore.raise_fence

    def sometimes(store: VersionStore, fence: int) -> None:
        if next(away, None) is not None:
            raise OSError("the disk is full")
        raise_fence(store, fence)

    monkeypatch.setattr(VersionStore, "raise_fence", sometimes)
    job = site.submit("colors", epochs=1)
    worker = site.worker()
    deadline = time.monotonic() + 120
    while not site.queue.get(job.id).status.terminal:
        assert time.monotonic() < deadline
        worker.run_one(0.2)
    ended = site.queue.get(job.id)
    assert (ended.status, ended.attempts) == (JobStatus.SUCCEEDED, 1)


def test_a_damaged_parent_is_no_fault_of_the_job(site: Site, monkeypatch: pytest.MonkeyPatch):
    """The gateway may put ``stable`` back, or somebody the file: until then the job waits."""
    monkeypatch.setattr("trainer_worker.worker.OUTAGE_SECONDS", (0.05,))
    assert site.finish(site.submit("colors")).status is JobStatus.SUCCEEDED
    (file,) = site.home.glob("versions/strata/v1/state.safetensors")
    good = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    job = site.submit("shades", "Which shade is it?", epochs=1)
    worker = site.worker()
    for _ in range(4):
        worker.run_one(0.2)
    assert not site.queue.get(job.id).status.terminal
    file.write_bytes(good)
    ended = site.finish(job)
    assert (ended.status, ended.attempts) == (JobStatus.SUCCEEDED, 1)


def test_more_pictures_than_fit_into_memory_are_refused_in_words(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer_worker.pipeline.available_bytes", lambda: 10_000)
    job = site.finish(site.submit("colors"))
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert re.search(
        r"ds-\w+ has 15 pictures, which take .* MiB .* 50% of the 0\.0 MiB .* at most \d+ pictures",
        job.error.message,
    ), job.error.message


def test_a_running_job_can_be_cancelled_and_a_stopping_worker_hands_back(site: Site):
    slow = site.submit("colors", epochs=9000)
    worker = site.worker()
    thread = threading.Thread(target=worker.run_one, args=(1.0,))
    thread.start()
    wait_for_phase(site, slow, "train")
    site.stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert site.queue.get(slow.id).status is not JobStatus.FAILED
    site.stop.clear()
    thread = threading.Thread(target=worker.run_one, args=(5.0,))
    thread.start()
    wait_for_phase(site, slow, "train", times=2)
    site.queue.cancel(slow.id)
    thread.join(timeout=30)
    assert site.queue.get(slow.id).status is JobStatus.CANCELLED
    assert site.versions.list() == []


def wait_for_phase(site: Site, job: Job, phase: str, times: int = 1) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        events = site.queue.events(job.id, limit=1000)
        if sum(event.data.get("phase") == phase for event in events if event.type == "phase") >= times:
            return
        time.sleep(0.05)
    raise AssertionError(f"phase {phase} did not begin")


POINTS = [
    "phase:validate",
    "phase:keys",
    "phase:evaluate",
    "phase:publish",
    "after:split",
    "before:publish",
    "after:publish",
    "after:stable",
    "after:previous",
    "before:finish",
    "after:finish",
]


@pytest.mark.parametrize(
    ("point", "status"),
    [("phase:publish", JobStatus.CANCELLED), ("after:stable", JobStatus.SUCCEEDED)],
)
def test_a_job_cancelled_after_its_worker_died_ends_as_what_it_did(
    site: Site, spawning, point: str, status: JobStatus
):
    job = site.submit("colors")
    process = spawning.Process(target=work_until_killed, args=(point, site.flags()))
    process.start()
    process.join(timeout=300)
    assert site.queue.cancel(job.id).status is JobStatus.RUNNING
    ended = site.finish(job)
    stable = site.versions.aliases.get("stable")
    assert (ended.status, ended.result_version) == (status, stable.version if stable else None)


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_anywhere_leaves_exactly_one_version(site: Site, spawning, point: str):
    job = site.submit("colors")
    process = spawning.Process(target=work_until_killed, args=(point, site.flags()))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    ended = site.finish(job)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    assert [manifest.job_id for manifest in site.versions.list()] == [job.id]
    stable = site.versions.aliases.get("stable")
    promoted = site.versions.manifest("v1").gate.passed  # type: ignore[union-attr]
    assert (stable is not None and stable.version == "v1") == promoted
    assert len(site.versions.aliases.history("stable")) == int(promoted)


def test_sigterm_ends_the_process_cleanly(site: Site, spawning):
    process = spawning.Process(target=work_until_killed, args=("phase:never", site.flags()))
    process.start()
    job = site.submit("colors", epochs=9000)
    wait_for_phase(site, job, "train")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=120)
    assert process.exitcode == 0
    assert not site.queue.get(job.id).status.terminal
