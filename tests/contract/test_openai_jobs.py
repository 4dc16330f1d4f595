"""Files, jobs, events and checkpoints through the ``openai`` client: its pages, its statuses, its errors."""

from __future__ import annotations

import io
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.contract.conftest import RunningGateway
from tests.contract.pictures import llava_zip

STEPS = 230


@pytest.fixture(scope="module")
def files(client: openai.OpenAI) -> list[str]:
    """Return the ids of five files, oldest first."""
    return [
        client.files.create(file=(f"{n}.zip", io.BytesIO(llava_zip(n))), purpose="fine-tune").id
        for n in range(2, 7)
    ]


@pytest.fixture(scope="module")
def jobs(client: openai.OpenAI, files: list[str]) -> list[FineTuningJob]:
    """Return a waiting job for each file, oldest first."""
    return [
        client.fine_tuning.jobs.create(
            training_file=file,
            model="strata",
            suffix=f"s{number}",
            seed=number,
            metadata={"task": f"colors-{number}", "note": "kept"},
        )
        for number, file in enumerate(files)
    ]


@pytest.fixture(scope="module")
def learned(running: RunningGateway, client: openai.OpenAI, jobs: list[FineTuningJob]) -> FineTuningJob:
    """Return the first job after a worker's claim told of many steps and finished it."""
    claim = running.gateway.link.queue().claim("w")
    assert claim is not None
    assert claim.job.id == jobs[0].id
    claim.update(status="running", phase="train")
    running_job = client.fine_tuning.jobs.retrieve(claim.job.id)
    assert running_job.status == "running"
    for step in range(1, STEPS + 1):
        data = {"step": step, "total_steps": STEPS, "loss": 1 / step}
        claim.event(f"step {step}/{STEPS}", type="metrics", data=data)
    claim.finish("succeeded", result_version="v1", decision="expand")
    return client.fine_tuning.jobs.retrieve(claim.job.id)


def test_files_are_paged_by_the_client(client: openai.OpenAI, files: list[str]):
    page = client.files.list(limit=2)
    assert len(page.data) == 2
    assert page.has_next_page()
    assert [file.id for file in page] == list(reversed(files))
    oldest_first = client.files.list(limit=2, order="asc", after=files[0])
    assert [file.id for file in oldest_first] == files[1:]
    assert list(client.files.list(purpose="batch")) == []
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-none")


def test_a_file_is_shown_waited_for_and_deleted(client: openai.OpenAI):
    data = llava_zip(7)
    sent = client.files.create(file=("seven.zip", data, "application/zip"), purpose="fine-tune")
    assert client.files.wait_for_processing(sent.id, poll_interval=0.1).status == "processed"
    assert client.files.retrieve(sent.id) == sent
    with client.files.with_streaming_response.content(sent.id) as answer:
        assert b"".join(answer.iter_bytes()) == data
    assert client.files.delete(sent.id).deleted is True
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            gone(sent.id)
        assert caught.value.param == "file"


def test_what_cannot_be_uploaded_is_refused_in_words(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="use 'fine-tune'") as caught:
        client.files.create(file=("a.zip", llava_zip()), purpose="vision")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.files.create(file=("a.zip", b""), purpose="fine-tune")


def test_jobs_are_paged_by_the_client(client: openai.OpenAI, jobs: list[FineTuningJob]):
    page = client.fine_tuning.jobs.list(limit=2)
    assert len(page.data) == 2
    assert page.has_next_page()
    assert [job.id for job in page] == [job.id for job in reversed(jobs)]
    behind = client.fine_tuning.jobs.list(limit=1, after=jobs[2].id)
    assert [job.id for job in behind] == [jobs[1].id, jobs[0].id]
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list(after="job-0193f2a4c0de1f2e3d4c5b6a7980")


def test_jobs_are_found_by_their_metadata(
    running: RunningGateway, client: openai.OpenAI, jobs: list[FineTuningJob]
):
    bare = running.http.post(
        "/v1/tasks/bare/batches", json={"examples": [{"question": "Which?", "answer": "seven"}]}
    ).json()["id"]
    running.http.post(f"/v1/jobs/{bare}/cancel").raise_for_status()
    listed = client.fine_tuning.jobs.list
    assert [job.id for job in listed(metadata={"task": "colors-3"})] == [jobs[3].id]
    assert [job.id for job in listed(metadata={"note": "kept"}, limit=2)] == [
        job.id for job in reversed(jobs)
    ]
    assert [job.id for job in listed(metadata={"note": "kept", "task": "colors-1"})] == [jobs[1].id]
    for nobody in ({"note": "kept", "task": "?"}, {"strata:seed": "1"}, {"note": "ke"}):
        assert listed(metadata=nobody).data == []
    behind = listed(metadata={"note": "kept"}, after=jobs[2].id)
    assert [job.id for job in behind] == [jobs[1].id, jobs[0].id]
    assert [job.id for job in listed(extra_query={"metadata": "null"})] == [bare]


@pytest.mark.parametrize(
    "query", ["metadata=x", "metadata[]=x", "metadata[a][b]=x", "metadata[a]=1&metadata[a]=2", "metadata[a=x"]
)
def test_a_filter_that_is_none_is_refused(running: RunningGateway, query: str):
    for path in ("/v1/fine_tuning/jobs", "/v1/jobs"):
        answer = running.http.get(f"{path}?{query}")
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "metadata"
        assert "metadata[key]=value" in answer.json()["error"]["message"]


def test_a_job_has_every_field_of_the_client(jobs: list[FineTuningJob], files: list[str]):
    job = jobs[1]
    assert (job.object, job.model, job.organization_id) == ("fine_tuning.job", "strata", "strata")
    assert (job.training_file, job.seed, job.result_files) == (files[1], 1, [])
    assert job.model_extra is not None
    assert job.model_extra["user_provided_suffix"] == "s1"
    assert job.metadata == {"task": "colors-1", "note": "kept"}
    assert job.hyperparameters.n_epochs == "auto"
    assert job.method is not None
    assert job.method.type == "supervised"
    assert (job.fine_tuned_model, job.error, job.finished_at) == (None, None, None)


def oldest_first(client: openai.OpenAI, job_id: str) -> list[str]:
    """Return the ids of a job's events as ``/v1/jobs`` lists them, page by page."""
    found: list[str] = []
    more = True
    while more:
        query = {"limit": 60, **({"after": found[-1]} if found else {})}
        page: Any = client.get(f"/jobs/{job_id}/events", cast_to=object, options={"params": query})
        found += [event["id"] for event in page["data"]]
        more = page["has_more"]
    assert found == sorted(found, key=lambda name: [int(part) for part in name.split("-")])
    return found


def test_events_are_paged_by_the_client_newest_first_and_hold_the_loss_curve(
    client: openai.OpenAI, learned: FineTuningJob
):
    first = client.fine_tuning.jobs.list_events(learned.id, limit=50)
    assert (len(first.data), first.has_next_page()) == (50, True)
    events = list(first)
    assert [event.id for event in events] == oldest_first(client, learned.id)[::-1]
    oldest = client.fine_tuning.jobs.list_events(learned.id, after=events[1].id, limit=len(events) - 2)
    assert ([event.id for event in oldest.data], oldest.has_more) == ([e.id for e in events[2:]], False)
    steps = [event for event in events if event.type == "metrics"]
    assert len({event.id for event in events}) == len(events)
    assert [dict(event.data)["step"] for event in steps if event.data] == list(range(STEPS, 0, -1))  # type: ignore[call-overload]
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    assert {event.level for event in events} <= {"info", "warn", "error"}


def test_a_learned_job_names_its_model_and_its_checkpoint(client: openai.OpenAI, learned: FineTuningJob):
    assert (learned.status, learned.fine_tuned_model) == ("succeeded", "strata@v1")
    assert learned.finished_at is not None
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(learned.id, limit=1)
    assert checkpoint.fine_tuned_model_checkpoint == "strata@v1"
    assert checkpoint.fine_tuning_job_id == learned.id
    assert (checkpoint.step_number, checkpoint.metrics.step) == (STEPS, STEPS)
    assert checkpoint.metrics.train_loss == pytest.approx(1 / STEPS)
    behind = client.fine_tuning.jobs.checkpoints.list(learned.id, after=checkpoint.id)
    assert list(behind) == []
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.checkpoints.list(learned.id, after="ckpt-none")


def test_a_waiting_job_has_no_checkpoint_and_is_cancelled_once(
    client: openai.OpenAI, jobs: list[FineTuningJob], learned: FineTuningJob
):
    assert list(client.fine_tuning.jobs.checkpoints.list(jobs[4].id)) == []
    assert client.fine_tuning.jobs.cancel(jobs[4].id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(jobs[4].id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.cancel(learned.id)


@pytest.mark.parametrize("seed", [5, 5.0, "5.0"])
def test_a_seed_among_the_hyperparameters_is_the_one_shown(
    client: openai.OpenAI, files: list[str], seed: object
):
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"seed": seed}}}
    wanted: Any = {"training_file": files[0], "model": "strata", "method": method}
    for twice in (wanted, {**wanted, "seed": 5}):
        job = client.fine_tuning.jobs.create(**twice)
        assert job.seed == 5
        assert job.model_extra is not None
        assert job.model_extra["user_provided_suffix"] is None
        client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError, match=r"seed 7 and hyperparameters\.seed 5") as caught:
        client.fine_tuning.jobs.create(**wanted, seed=7)
    assert caught.value.param == "seed"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"training_file": "file-none"}, "file"),
        ({"model": "gpt-4o"}, "model"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"task": "no spaces please"}}, "task"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": -1}}}}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_job_that_cannot_be_is_refused_with_the_field(
    client: openai.OpenAI, files: list[str], change: dict, param: str | None
):
    wanted = {"training_file": files[0], "model": "strata", **change}
    with pytest.raises(openai.APIStatusError) as caught:
        client.fine_tuning.jobs.create(**wanted)
    assert caught.value.status_code in (400, 404)
    if param is not None:
        assert caught.value.param == param


def test_every_fault_of_a_training_file_is_in_the_error(client: openai.OpenAI):
    lines = b'{"question": "Which?", "answer": ""}\n{"answer": "red"}\n'
    sent = client.files.create(file=("bad.jsonl", lines), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(training_file=sent.id, model="strata")
    body = caught.value.body
    assert isinstance(body, dict)
    assert caught.value.code == "invalid_dataset"
    assert {fault["line"] for fault in body["report"]["faults"]} == {1, 2}
