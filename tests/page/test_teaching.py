"""Teaching on the page: faults before anything is learned, a job that can be watched and stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.conftest import RunningGateway
from tests.contract.pictures import examples, llava_zip
from tests.page.browser import Page


@pytest.fixture
def teach(page: Page) -> Page:
    page.click("#tab-teach")
    page.wait("!document.querySelector('#teach').hidden")
    return page


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    file = tmp_path / "colors.zip"
    file.write_bytes(llava_zip(6))
    return file


def test_every_fault_of_a_broken_data_set_is_shown(teach: Page, running: RunningGateway, tmp_path: Path):
    good = {"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "red"}]}
    lines = [json.dumps(good), "{not json", json.dumps({"messages": []}), json.dumps(good)]
    lines += [json.dumps({"messages": [{"role": "user", "content": "<img src=x onerror=alert(1)>"}]})]
    file = tmp_path / "broken.jsonl"
    file.write_text("\n".join(lines))
    teach.drop("#drop", file)
    teach.wait_text("#report", "faults")
    sent = {"file": (file.name, file.read_bytes())}
    found = running.http.post("/v1/datasets:validate", files=sent).json()
    assert len(found["faults"]) >= 3
    title = "What must be mended"
    shown = teach.text(f'[aria-label="{title}"]')
    for fault in found["faults"]:
        assert fault["reason"] in shown
    assert teach.js("document.querySelectorAll('#report .scroll:first-of-type tbody tr').length") == len(
        found["faults"]
    )
    assert f"{len(found['faults'])} faults" in teach.text("#report .verdict")
    assert teach.js("document.querySelector('#teach-button').disabled")


def test_a_name_that_cannot_be_is_told_while_it_is_typed(teach: Page, archive: Path):
    teach.choose("#data-file", archive)
    teach.wait_text("#report", "can be taught")
    assert "6 examples" in teach.text("#report")
    teach.click("#task")
    teach.type("My Task")
    teach.wait_text("#task-note", "Up to 63")
    assert teach.js("document.querySelector('#task').getAttribute('aria-invalid')") == "true"
    assert teach.js("document.querySelector('#teach-button').disabled")


def test_a_lesson_is_sent_watched_and_cancelled(teach: Page, running: RunningGateway, archive: Path):
    teach.choose("#data-file", archive)
    teach.wait_text("#report", "can be taught")
    teach.click("#task")
    teach.type("colors")
    teach.press("Enter")
    teach.wait_text("#jobs", "colors")
    assert "queued" in teach.text(".job")
    job = running.http.get("/v1/fine_tuning/jobs").json()["data"][0]
    assert (job["task"], job["dataset"]["examples"]) == ("colors", 6)
    queue = running.gateway.link.queue()
    claim = queue.claim("w")
    assert claim is not None
    assert claim.job.id == job["id"]
    claim.update(phase="train")
    for step in range(1, 31):
        values = {"step": step, "total_steps": 60, "loss": 3.0 / step, "eta_seconds": 60.0 - step}
        claim.event(f"step {step}", type="metrics", data=values)
    teach.wait_text(".job", "step 30 of 60")
    assert "loss 0.100" in teach.text(".job")
    drawn = "document.querySelector('.job .curve')?.getAttribute('d').split('L').length"
    assert teach.js(drawn) == 30
    claim.event(
        "step 31", type="metrics", data={"step": 31, "total_steps": 60, "loss": 0.05, "estimated_finish": 4e9}
    )
    teach.wait_text(".job", "left")
    assert teach.js(drawn) == 31
    teach.click(".job .danger")
    teach.wait_text(".job", "stops at the next step")
    assert claim.is_cancelled()
    claim.finish("cancelled")
    teach.wait_text(".job", "cancelled")
    assert not teach.shown(".job .danger")
    assert not teach.shown(".job .phases")


def test_the_curve_of_a_job_that_has_ended_can_be_looked_at(teach: Page, running: RunningGateway):
    assert running.http.post("/v1/tasks/shapes/batches", json={"examples": examples(4)}).status_code == 202
    claim = running.gateway.link.queue().claim("w")
    assert claim is not None
    assert claim.job.task == "shapes"
    for step in range(1, 511):
        claim.event("step", type="metrics", data={"step": step, "total_steps": 510, "loss": 1 / step})
    gate = {"passed": False, "reasons": ["forgot digits by 0.13"]}
    claim.finish("succeeded", decision="expand", result_version="v9", gate=gate)
    teach.wait_text(".job", "v9 held back")
    assert "Not served: forgot digits by 0.13" in teach.text(".job")
    teach.open(f"{running.url}/?again#teach")
    teach.wait_text(".job", "v9 held back")
    assert teach.js("document.querySelectorAll('.job .curve').length") == 0
    teach.click(".job .quiet")
    teach.wait("document.querySelector('.job .curve')")
    assert teach.js("document.querySelector('.job .quiet').getAttribute('aria-expanded')") == "true"
    assert "step 510 of 510" in teach.js("document.querySelector('.job .chart').getAttribute('aria-label')")


def test_a_waiting_job_is_cancelled_at_once_and_a_failed_one_says_why(teach: Page, running: RunningGateway):
    for task in ("birds", "fish"):
        body = {"examples": examples(4)}
        assert running.http.post(f"/v1/tasks/{task}/batches", json=body).status_code == 202
    teach.wait_text("#jobs", "fish")
    newest = teach.js("document.querySelector('.job h3').innerText")
    assert newest == "fish"
    teach.click(".job .danger")
    teach.wait_text(".job", "cancelled")
    claim = running.gateway.link.queue().claim("w")
    assert claim is not None
    assert claim.job.task == "birds"
    error = {"code": "input_error", "message": "all answers are the same: <b>red</b>", "param": None}
    claim.finish("failed", error=error)
    teach.wait_text("#jobs", "all answers are the same: <b>red</b>")
