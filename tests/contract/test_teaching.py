"""What is accepted is never lost, what is refused is explained, and Redis may come and go."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter_store.errors import QueueUnavailable
from adapter_store.jobs import Claim, Job, JobQueue, connect
from adapter_store.redis_server import RedisServer
from server.pools import DATASETS
from tests.contract.conftest import RunningGateway, chat_body, wait_for
from tests.contract.pictures import data_url, examples, llava_zip, png

BATCHES = "/v1/tasks/colors/batches"


def test_json_examples_become_a_job_whose_data_is_on_disk(running: RunningGateway, http: httpx.Client):
    answer = http.post(BATCHES, json={"examples": examples(), "hyperparameters": {"n_epochs": 2}})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["status"], job["task"]) == ("queued", "colors")
    assert job["hyperparameters"]["n_epochs"] == 2
    dataset = running.gateway.datasets.open(job["dataset"]["id"])
    assert [example.turns[0].answer for example in dataset.examples] == ["red", "green", "blue", "white"]
    assert running.gateway.link.journal.get(job["id"]) is not None
    assert running.gateway.link.queue().get(job["id"]).task == "colors"


def test_a_file_and_a_single_picture_can_be_sent_as_a_form(http: httpx.Client):
    sent = http.post(
        BATCHES, files={"file": ("c.zip", llava_zip())}, data={"n_epochs": "3", "learning_rate": "0.01"}
    )
    assert sent.status_code == 202, sent.text
    assert sent.json()["dataset"]["examples"] == 4
    assert sent.json()["hyperparameters"]["learning_rate"] == 0.01
    one = http.post(
        BATCHES, files={"image": ("a.png", png("red"))}, data={"question": "Which color?", "answer": "red"}
    )
    assert one.status_code == 202, one.text
    assert one.json()["dataset"] == {**one.json()["dataset"], "examples": 1, "images": 1}


def faulty() -> list[Any]:
    return [
        examples(1)[0],
        {"image": "data:image/png;base64,AAAA", "question": "Which color?", "answer": "red"},
        {"question": "Which color?"},
        {"image": "http://169.254.169.254/x.png", "question": "Which color?", "answer": "red"},
        "not an object",
    ]


def test_every_fault_is_in_one_answer_and_nothing_is_kept(running: RunningGateway, http: httpx.Client):
    before = len(running.gateway.link.journal.all()), len(running.gateway.datasets.ids())
    answer = http.post(BATCHES, json={"examples": faulty()})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "invalid_dataset"
    assert {fault["line"] for fault in error["report"]["faults"]} == {2, 3, 4, 5}
    assert (len(running.gateway.link.journal.all()), len(running.gateway.datasets.ids())) == before


def test_validation_reports_and_stores_nothing(running: RunningGateway, http: httpx.Client):
    before = len(running.gateway.datasets.ids())
    good = http.post("/v1/datasets:validate", files={"file": ("c.zip", llava_zip(5))}).json()
    assert (good["ok"], good["examples"], good["images"]) == (True, 5, 5)
    bad = http.post("/v1/datasets:validate", json={"examples": faulty()}).json()
    assert bad["ok"] is False
    assert len(bad["faults"]) >= 4
    assert len(running.gateway.datasets.ids()) == before
    assert list((running.home / "uploads").iterdir()) == []


@pytest.mark.parametrize("bad", ["x", 5, float("nan"), None, []])
def test_a_bad_first_example_hides_no_other_fault(http: httpx.Client, bad: Any):
    body = json.dumps({"examples": [bad, examples(1)[0], {"question": "?", "answer": ""}]})
    kind = {"content-type": "application/json"}
    report = http.post("/v1/datasets:validate", content=body, headers=kind).json()
    found = [(fault["line"], fault["field"]) for fault in report["faults"]]
    assert found == [(1, "[0]"), (3, "[2].answer")]
    for path in ("/v1/datasets", BATCHES):
        refused = http.post(path, content=body, headers=kind).json()["error"]["report"]
        assert refused["faults"] == report["faults"]
    empty = http.post("/v1/datasets:validate", json={"examples": []}).json()
    assert empty["faults"][0]["reason"] == "the list of examples is empty"


def test_a_stored_data_set_can_be_named(http: httpx.Client):
    stored = http.post("/v1/datasets", json={"examples": examples(3)})
    assert stored.status_code == 201
    identity = stored.json()["id"]
    assert http.get(f"/v1/datasets/{identity}").json()["report"]["ok"] is True
    assert http.post(BATCHES, json={"dataset": identity}).json()["dataset"]["id"] == identity
    assert http.post(BATCHES, json={"dataset": "ds-ffffffffffffffff"}).status_code == 404


def test_stored_data_sets_are_listed_in_pages(http: httpx.Client):
    made = {http.post("/v1/datasets", json={"examples": examples(n)}).json()["id"] for n in (1, 2, 3)}
    whole = http.get("/v1/datasets").json()
    assert (whole["object"], whole["has_more"]) == ("list", False)
    assert made <= {ref["id"] for ref in whole["data"]}
    found, more = [], True
    while more:
        page = http.get("/v1/datasets", params={"limit": 2, **({"after": found[-1]["id"]} if found else {})})
        found, more = found + page.json()["data"], page.json()["has_more"]
        assert len(page.json()["data"]) <= 2
    assert found == whole["data"]
    assert http.get("/v1/datasets", params={"limit": 0}).status_code == 400
    assert http.get("/v1/datasets", params={"after": "none"}).status_code == 404


def test_too_many_waiting_checks_are_refused_before_their_bytes_are_read(
    running: RunningGateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    kept = len(list(running.gateway.uploads.glob("*")))
    monkeypatch.setattr(DATASETS, "_most", 0)
    one = {"examples": examples(1)}
    sent: list[tuple[str, dict[str, Any]]] = [
        (path, how)
        for path in ("/v1/datasets:validate", "/v1/datasets", BATCHES)
        for how in ({"json": one}, {"files": {"file": ("c.zip", llava_zip())}})
    ]
    sent.append(("/v1/tasks/robins/lora", {"files": {"adapter": b"x", "file": b"x"}}))
    for path, how in sent:
        answer = http.post(path, **how)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "datasets_busy")
        assert int(answer.headers["retry-after"]) > 0
    assert len(list(running.gateway.uploads.glob("*"))) == kept
    monkeypatch.undo()
    assert http.post("/v1/datasets:validate", json=one).json()["ok"] is True


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tasks/BAD NAME/batches", {"examples": []}),
        ("/v1/tasks/..%2fetc/batches", {"examples": []}),
        (BATCHES, {"examples": []}),
        (BATCHES, {}),
        (BATCHES, {"examples": "all of them"}),
        (BATCHES, {"examples": [], "surprise": 1}),
        (BATCHES, {"examples": [{}], "hyperparameters": {"Bad Name": 1}}),
        (BATCHES, {"examples": [{}], "hyperparameters": {"n_epochs": [1]}}),
        (BATCHES, [1, 2]),
    ],
)
def test_unusable_batches_are_refused(http: httpx.Client, path: str, body: Any):
    answer = http.post(path, json=body)
    assert answer.status_code in (400, 404)
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


def test_an_idempotency_key_makes_repeating_safe(http: httpx.Client):
    key = {"Idempotency-Key": "once-and-only-once"}
    jobs: list[dict[str, Any]] = []
    threads = [
        threading.Thread(
            target=lambda: jobs.append(http.post(BATCHES, json={"examples": examples(5)}, headers=key).json())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job["id"] for job in jobs}) == 1
    other = http.post(BATCHES, json={"examples": examples(6)}, headers=key)
    assert other.status_code == 409
    assert other.headers["x-should-retry"] == "false"
    bad = http.post(BATCHES, json={"examples": examples(6)}, headers={"Idempotency-Key": "x" * 300})
    assert bad.status_code == 400


def events_of(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            found.append(
                {"event": fields.get("event"), "id": fields.get("id"), "data": json.loads(fields["data"])}
            )
    return found


def claimed(queue: JobQueue, job_id: str) -> Claim:
    """Take a job as its worker would, dropping those that were sent before it."""
    while (claim := queue.claim("w")) is not None and claim.job.id != job_id:
        claim.finish("cancelled")
    assert claim is not None
    return claim


def test_events_can_be_read_followed_and_taken_up_again(running: RunningGateway, http: httpx.Client):
    job = http.post(BATCHES, json={"examples": examples(2)}).json()
    queue = running.gateway.link.queue()
    claim = claimed(queue, job["id"])
    marks = [
        claim.event(f"step {step}", type="metrics", data={"step": step, "loss": 1 / step})
        for step in (1, 2, 3)
    ]
    page = http.get(f"/v1/jobs/{job['id']}/events", params={"limit": 1000}).json()
    assert [event["id"] for event in page["data"]][-3:] == marks
    openai = http.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params={"limit": 1000}).json()
    assert openai["data"] == page["data"][::-1]
    behind = http.get(f"/v1/jobs/{job['id']}/events", params={"after": marks[0]}).json()["data"]
    assert [event["id"] for event in behind] == marks[1:]
    assert http.get(f"/v1/jobs/{job['id']}/events", params={"after": "nonsense"}).status_code == 400
    threading.Timer(0.5, lambda: claim.finish("cancelled")).start()
    headers = {"accept": "text/event-stream", "last-event-id": marks[1]}
    followed = http.get(f"/v1/jobs/{job['id']}/events", headers=headers)
    assert followed.headers["content-type"].startswith("text/event-stream")
    assert followed.headers["x-accel-buffering"] == "no"
    events = events_of(followed.text)
    assert events[0]["id"] == marks[2]
    also = http.get(
        f"/v1/fine_tuning/jobs/{job['id']}/events", headers={**headers, "last-event-id": marks[0]}
    )
    assert [event["id"] for event in events_of(also.text)][:2] == marks[1:]
    assert events[0]["data"]["data"] == {"step": 3, "loss": 1 / 3}
    assert events[-1]["event"] == "done"
    assert events[-1]["data"]["status"] == "cancelled"


def test_unknown_jobs_are_404_also_as_a_stream(http: httpx.Client):
    for path in ("/v1/jobs/job-nope", "/v1/jobs/../x", "/v1/fine_tuning/jobs/job-nope/events"):
        assert http.get(path, headers={"accept": "text/event-stream"}).status_code == 404


def test_a_job_whose_acceptance_was_lost_is_accepted_all_the_same(
    running: RunningGateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    queue, queued = running.gateway.link.queue(), []

    def submit(job: Job) -> Job:
        queued.append(JobQueue.submit(queue, job))
        raise QueueUnavailable("Redis took the job and its answer was lost")

    monkeypatch.setattr(queue, "submit", submit)
    request = {"json": {"examples": examples(3)}, "headers": {"Idempotency-Key": "lost"}}
    accepted = http.post(BATCHES, **request)
    assert (accepted.status_code, accepted.json()["id"]) == (202, queued[0].id)
    monkeypatch.undo()
    again = http.post(BATCHES, **request)
    assert (again.status_code, again.json()["id"]) == (202, queued[0].id)
    assert running.gateway.link.journal.get(queued[0].id) is not None


def test_without_redis_serving_goes_on_and_nothing_accepted_is_lost(tmp_path: Path, tiny_base: Path):
    redis = RedisServer.start(tmp_path / "elsewhere")
    running = RunningGateway(tmp_path / "home", tiny_base, redis_url=redis.url).wait_ready()
    try:
        accepted = running.http.post(BATCHES, json={"examples": examples()}).json()
        redis.stop()
        body = {"examples": examples(5)}
        refused = running.http.post(BATCHES, json=body)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_unavailable"
        assert running.http.post("/v1/datasets:validate", json=body).json()["ok"] is True
        assert running.http.post("/v1/chat/completions", json=chat_body()).status_code == 200
        assert running.http.get(f"/v1/jobs/{accepted['id']}").json()["id"] == accepted["id"]
        wait_for(lambda: running.metric("strata_queue_up") == 0)
        for file in (tmp_path / "elsewhere" / "redis").glob("**/*"):
            if file.is_file() and file.suffix in (".aof", ".rdb", ".manifest"):
                file.unlink()  # the worst case: Redis comes back and knows nothing
        redis = RedisServer.start(tmp_path / "elsewhere")
        wait_for(lambda: running.metric("strata_queue_up") == 1)
        queue = JobQueue(connect(redis.url), "strata")
        wait_for(lambda: [job.id for job in queue.list()] == [accepted["id"]])
    finally:
        running.stop()
        redis.stop()


def test_pictures_in_examples_are_never_fetched(http: httpx.Client):
    body = {"examples": [{"image": data_url(b"<svg/>", "svg+xml"), "question": "q", "answer": "a"}]}
    answer = http.post(BATCHES, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["report"]["faults"][0]["line"] == 1
