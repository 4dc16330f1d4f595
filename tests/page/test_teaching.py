"""Teaching on the page: faults before anything is learned, a job that can be watched and stopped."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from adapter_store.datasets.held_out import SPLIT_FILE, held_out_folder
from adapter_store.images import decode_image, decode_inline, image_digest
from tests.contract.conftest import RunningGateway
from tests.contract.pictures import examples, llava_zip, png
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


def folders(places: list[str]) -> bytes:
    """Return a zip with one picture at each place; the folder is the answer."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, place in enumerate(places):
            archive.writestr(place, png("red", 20 + number))
    return out.getvalue()


def test_one_folder_for_each_answer_is_taught_with_a_question(
    teach: Page, running: RunningGateway, tmp_path: Path
):
    file = tmp_path / "birds.zip"
    file.write_bytes(folders([f"{bird}/{number}.png" for bird in ("robin", "wren") for number in range(3)]))
    teach.choose("#data-file", file)
    teach.wait_text("#report", "1 fault")
    teach.wait_text("#question-note", "Questions are missing in the data: write one")
    assert teach.js("document.querySelector('#data-question').getAttribute('aria-invalid')") == "true"
    teach.click("#data-question")
    teach.type("What bird is it?")
    teach.wait_text("#report", "can be taught")
    assert teach.focused() == "data-question", "the check takes nobody's place"
    teach.press("Tab")
    assert teach.focused() == "task"
    teach.type("folders")
    teach.press("Enter")
    teach.wait_text("#jobs", "folders")
    job = next(
        job for job in running.http.get("/v1/fine_tuning/jobs").json()["data"] if job["task"] == "folders"
    )
    stored = running.gateway.datasets.open(job["dataset"]["id"])
    assert {turn.question for example in stored.examples for turn in example.turns} == {"What bird is it?"}
    assert teach.js("document.querySelector('#data-question').value") == ""
    running.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")


@pytest.mark.parametrize("packing", ["lines", "array"])
def test_blank_questions_are_told_and_asked_with_the_one_that_is_typed(
    teach: Page, tmp_path: Path, packing: str
):
    rows = [{"question": question, "answer": "red"} for question in ("Which color?", "", " ")]
    file = tmp_path / "blank.json"
    file.write_text(json.dumps(rows) if packing == "array" else "\n".join(map(json.dumps, rows)))
    teach.choose("#data-file", file)
    teach.wait_text("#report", "2 faults")
    teach.wait_text("#question-note", "Questions are missing in the data: write one")
    assert teach.js("document.querySelector('#data-question').getAttribute('aria-invalid')") == "true"
    assert "Name the task" not in teach.text("#task-note")
    teach.click("#data-question")
    teach.type("What is shown?")
    teach.wait_text("#report", "can be taught")
    teach.wait_text("#task-note", "Name the task to teach it.")
    assert teach.js("document.querySelector('#data-question').getAttribute('aria-invalid')") == "false"


@pytest.mark.parametrize("size", [(1280, 900), (375, 700)], ids=["wide", "narrow"])
def test_many_faults_scroll_by_keyboard_in_an_area_of_their_own(
    teach: Page, tmp_path: Path, size: tuple[int, int]
):
    teach.resize(*size)
    file = tmp_path / "many.csv"
    file.write_text("image,question,answer\n" + "".join(f"{n}.png,What?,x\n" for n in range(150)))
    teach.choose("#data-file", file)
    teach.wait_text("#report", "150 faults")
    area = "document.querySelector('#report .scroll')"
    assert teach.js(f"{area}.clientHeight") <= 320
    assert teach.js(f"{area}.scrollHeight") > 3000
    teach.js(f"document.querySelector('#data-file').focus(), {area}.id = 'faults'")
    teach.tab_to(lambda focused: focused == "faults")
    teach.press("End")
    teach.wait(f"{area}.scrollTop + {area}.clientHeight > {area}.scrollHeight - 5")
    place = "getBoundingClientRect().top"
    head = f"Math.abs({area}.querySelector('th').{place} - {area}.{place})"
    assert teach.js(head) < 3, "the head stays in view"


def test_repeats_and_pictures_that_others_are_measured_on_are_told(
    teach: Page, running: RunningGateway, tmp_path: Path
):
    example = examples(1)[0]
    file = tmp_path / "twice.json"
    file.write_text(json.dumps([example, example, *examples(3)[1:]]))
    key = image_digest(decode_image(decode_inline(example["image"])))
    place = held_out_folder(running.home, "strata") / "reds"
    place.mkdir(parents=True)
    (place / SPLIT_FILE).write_text(json.dumps({"held_out": [key]}))
    teach.choose("#data-file", file)
    teach.wait_text("#report", "1 picture that “reds” is measured on")
    assert "1 duplicate" in teach.text(".facts")
    assert "1 example repeats an earlier one" in teach.text('[aria-label="Worth a look"]')
    teach.click("#task")
    teach.type("reds")
    teach.press("Tab")
    teach.wait_text("#report", "none with what other tasks are measured on")


def test_what_is_not_counted_to_the_end_is_told_as_the_least(teach: Page, tmp_path: Path):
    few, many = tmp_path / "few.jsonl", tmp_path / "many.jsonl"
    for file, examples_of_30_answers in ((few, 1), (many, 1667)):
        rows = [
            {"texts": [{"user": "q", "assistant": f"{row}-{turn}"} for turn in range(30)]}
            for row in range(examples_of_30_answers)
        ]
        file.write_text("\n".join(map(json.dumps, rows)))
    teach.choose("#data-file", few)
    teach.wait_text(".facts", "30 distinct answers")
    assert "at least" not in teach.text("#report")
    assert "up to a third of a small new task" in teach.text(".facts")
    teach.choose("#data-file", many)
    teach.wait_text(".facts", "at least 50,000 distinct answers", 60)
    assert "and at least 49988 more" in teach.text('[aria-label="Answers"]')


def test_all_formats_of_the_documentation_are_named(teach: Page):
    teach.click("#formats summary")
    named = teach.text("#formats")
    for name in ("CSV", "TSV", "folder", "LLaVA", "OpenAI", "ShareGPT", "LLaMA-Factory", "JSONL", "parquet"):
        assert name in named
    assert ".csv" in teach.js("document.querySelector('#data-file').accept")


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
    assert "The gate held it back: forgot digits by 0.13" in teach.text(".job")
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
