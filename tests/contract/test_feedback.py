"""Thumbs are counted, corrections wait and become jobs, and what cannot be one is refused with the reason."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter_store.redis_server import RedisServer
from server.feedback.locking import locked
from server.pools import DATASETS
from tests.contract.conftest import ASK_KEY, KEY, RunningGateway, chat_body, wait_for
from tests.contract.correcting import FEEDBACK, body, given, standing
from tests.contract.pictures import data_url, png
from tests.contract.publishing import QUESTION, Publisher

COUNT = 3
OTHER_KEY = "sk-test-somebody-else"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path):
    """Return a gateway that sends at three corrections of a task, and never by age."""
    home = tmp_path_factory.mktemp("home")
    keys = f"{KEY},{ASK_KEY}:ask,{OTHER_KEY}:teach"
    with RunningGateway(home, tiny_base, feedback_count=COUNT, feedback_seconds=0, api_keys=keys) as gateway:
        yield gateway.wait_ready()


def test_a_thumb_alone_is_noted_and_counted(running: RunningGateway, http: httpx.Client):
    before = running.metric("strata_feedback_total", rating="up", alias="stable") or 0.0
    noted = given(http, rating="up", correction=None, image=None, task=None, version="base")
    assert noted["id"].startswith("fb-")
    assert (noted["object"], noted["rating"], noted["status"]) == ("feedback", "up", "noted")
    assert (noted["job"], noted["task"], noted["pending"]["count"]) == (None, None, 0)
    assert running.metric("strata_feedback_total", rating="up", alias="stable") == before + 1
    assert running.gateway.thumbs.read()["base"] == (1, 0)
    assert http.post(FEEDBACK, json={"rating": "down"}).json()["status"] == "noted"


def test_one_answer_has_one_thumb(running: RunningGateway, http: httpx.Client):
    def thumb(rating: str, **changes: Any) -> None:
        given(http, rating=rating, correction=None, image=None, task=None, version="base", **changes)

    def counted() -> tuple[int, int]:
        return running.gateway.thumbs.read().get("base", (0, 0))

    thumb("down", request_id="req-first")
    up, down = counted()
    for _ in range(12):
        thumb("down", request_id="req-first")
    assert counted() == (up, down)
    thumb("up", request_id="req-first")
    assert counted() == (up + 1, down - 1)
    thumb("down", request_id="req-second")
    assert counted() == (up + 1, down)
    thumb("down")
    nameless = counted()
    seen = running.metric("strata_feedback_total", rating="down", alias="stable")
    for _ in range(12):
        thumb("down")
    assert counted() == nameless
    assert running.metric("strata_feedback_total", rating="down", alias="stable") == seen


def test_a_made_up_request_changes_nobody_elses_thumb(running: RunningGateway, http: httpx.Client):
    thumb = body(correction=None, image=None, task=None, version="base", request_id="req-contested")
    up, down = running.gateway.thumbs.read().get("base", (0, 0))
    assert http.post(FEEDBACK, json={**thumb, "rating": "up"}).status_code == 200
    other = {"authorization": f"Bearer {OTHER_KEY}"}
    assert http.post(FEEDBACK, json={**thumb, "rating": "down"}, headers=other).status_code == 200
    assert running.gateway.thumbs.read()["base"] == (up + 1, down + 1)


def test_corrections_wait_and_become_one_job_at_the_count(running: RunningGateway, http: httpx.Client):
    first = given(http, size=20, task="pets")
    assert (first["status"], first["job"], first["task"]) == ("pending", None, "pets")
    assert first["pending"]["count"] == 1
    assert first["pending"]["sent_at_count"] == COUNT
    assert first["pending"]["sent_after_seconds"] == 0
    assert given(http, size=20, task="pets") == {
        **first,
        "pending": {**first["pending"], **_age(http, "pets")},
    }
    replaced = given(http, size=20, task="pets", correction="a tiger")
    assert replaced["pending"]["count"] == 1
    assert replaced["id"] != first["id"]
    given(http, size=21, task="pets")
    last = given(http, size=22, task="pets")
    assert (last["status"], last["pending"]["count"]) == ("queued", 0)
    job = http.get(f"/v1/fine_tuning/jobs/{last['job']}").json()
    assert (job["task"], job["dataset"]["examples"], job["dataset"]["images"]) == ("pets", 3, 3)
    assert job["metadata"] is None
    dataset = running.gateway.datasets.open(job["dataset"]["id"])
    assert sorted(one.turns[0].answer for one in dataset.examples) == ["a cat", "a cat", "a tiger"]
    assert running.gateway.link.queue().get(last["job"]).corrects
    assert standing(http, "pets")["last_job"] == last["job"]
    again = given(http, size=22, task="pets")
    assert (again["status"], again["job"], again["pending"]["count"]) == ("queued", last["job"], 0)


def test_a_thumb_up_with_a_correction_counts_as_both(running: RunningGateway, http: httpx.Client):
    before = running.metric("strata_feedback_total", rating="up", alias="other") or 0.0
    both = given(http, rating="up", answer="cat", correction="a tabby cat", task="cats")
    assert (both["rating"], both["status"], both["pending"]["count"]) == ("up", "pending", 1)
    assert running.metric("strata_feedback_total", rating="up", alias="other") == before + 1
    job = http.post(f"{FEEDBACK}/cats/send").json()
    (example,) = running.gateway.datasets.open(job["dataset"]["id"]).examples
    assert example.turns[0].answer == "a tabby cat"


def _age(http: httpx.Client, task: str) -> dict[str, Any]:
    return {"oldest_seconds": pytest.approx(standing(http, task)["oldest_seconds"], abs=5)}


def test_one_picture_in_two_encodings_is_one_picture(http: httpx.Client):
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(stream, "WEBP", lossless=True)
    given(http, task="encodings")
    assert given(http, task="encodings", image=data_url(stream.getvalue(), "webp"))["pending"]["count"] == 1


def test_what_waits_can_be_sent_now(http: httpx.Client):
    given(http, task="early")
    sent = http.post(f"{FEEDBACK}/early/send")
    assert sent.status_code == 202, sent.text
    assert sent.json()["task"] == "early"
    assert sent.json() == http.get(f"/v1/fine_tuning/jobs/{sent.json()['id']}").json()
    nothing = http.post(f"{FEEDBACK}/early/send")
    assert nothing.status_code == 404
    assert "no corrections of 'early' wait" in nothing.json()["error"]["message"]
    assert http.post(f"{FEEDBACK}/never/send").status_code == 404
    assert http.post(f"{FEEDBACK}/BAD NAME/send").status_code == 400


def test_what_cannot_be_learned_is_set_aside_and_said(running: RunningGateway, http: httpx.Client):
    before = running.metric("strata_feedback_refused_total") or 0.0
    given(http, task="spoiled")
    assert standing(http, "spoiled")["refused"] == 0
    (picture,) = (running.home / "feedback" / "spoiled" / "open").glob("*.picture")
    picture.write_bytes(b"no picture any more")
    refused = http.post(f"{FEEDBACK}/spoiled/send")
    assert refused.status_code == 409, refused.text
    assert refused.json()["error"]["code"] == "corrections_refused"
    assert (
        "1 corrections of spoiled cannot be learned and are set aside: " in refused.json()["error"]["message"]
    )
    assert (standing(http, "spoiled")["count"], standing(http, "spoiled")["refused"]) == (0, 1)
    wait_for(lambda: running.metric("strata_feedback_refused_total") == before + 1, 30)


def test_a_later_answer_is_learned_though_the_earlier_one_is_under_way(http: httpx.Client):
    cat = given(http, task="unsure")
    job = http.post(f"{FEEDBACK}/unsure/send").json()["id"]
    assert given(http, task="unsure")["job"] == job
    assert given(http, task="unsure", correction="a dog")["status"] == "pending"
    again = given(http, task="unsure")
    assert (again["status"], again["job"], again["id"]) == ("pending", None, cat["id"])
    last = http.post(f"{FEEDBACK}/unsure/send").json()["id"]
    assert last != job
    assert given(http, task="unsure")["job"] == last


def test_a_correction_does_not_wait_for_validations(running: RunningGateway, http: httpx.Client):
    end = threading.Event()
    stuck = [DATASETS._executor.submit(end.wait, 120) for _ in range(DATASETS._executor._max_workers)]
    try:
        answer = http.post(FEEDBACK, json=body(task="hasty"), timeout=60)
        assert answer.json()["status"] == "pending"
        assert http.post(f"{FEEDBACK}/hasty/send", timeout=60).status_code == 202
        assert not any(one.done() for one in stuck)
    finally:
        end.set()


def test_a_lock_that_is_held_keeps_no_other_body_waiting(running: RunningGateway, http: httpx.Client):
    given(http, task="locked")
    examples = {"examples": [{"question": "Which?", "answer": "seven"}]}
    with ThreadPoolExecutor(8) as threads, locked(running.home / "feedback" / ".lock", 60):
        waiting = [threads.submit(http.post, FEEDBACK, json=body(20 + n, task="locked")) for n in range(8)]
        time.sleep(1)
        assert http.post("/v1/datasets:validate", json=examples).status_code == 200
        assert not any(one.done() for one in waiting)


def test_without_a_name_the_task_that_answers_learns_it(
    running: RunningGateway, http: httpx.Client, publisher: Publisher
):
    assert given(http, task=None)["task"] == "corrections"
    version = publisher.publish(publisher.state(3)).version
    running.gateway.store.aliases.move("stable", version, expected_revision=0, reason="a test", actor="test")
    wait_for(lambda: http.get("/v1/adapters/strata/aliases/stable").json().get("served") == version)
    asked = http.post("/v1/vqa", json={"question": QUESTION, "image": data_url(png("red"))}).json()
    assert asked["task"] == "digits"
    assert given(http, task=None, question=QUESTION)["task"] == "digits"
    before = running.metric("strata_feedback_total", rating="down", alias="stable") or 0.0
    assert given(http, task=None, question=QUESTION, version=version, size=24)["task"] == "digits"
    assert given(http, task=None, question=QUESTION, version="base", size=26)["task"] == "corrections"
    assert running.metric("strata_feedback_total", rating="down", alias="stable") == before + 1
    assert running.gateway.thumbs.read()[version] == (0, 1)


def test_a_version_of_another_base_is_refused(
    running: RunningGateway, http: httpx.Client, publisher: Publisher
):
    import dataclasses

    state = dataclasses.replace(publisher.state(4), base_digest="f" * 64)
    honest = publisher.base.digest
    object.__setattr__(publisher.base, "digest", "f" * 64)
    try:
        version = publisher.publish(state).version
    finally:
        object.__setattr__(publisher.base, "digest", honest)
    for task in (None, "animals"):
        answer = http.post(FEEDBACK, json=body(version=version, task=task))
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "wrong_base"


BOMB = png("red", 8)[:16] + (60_000).to_bytes(4, "big") * 2 + png("red", 8)[24:]


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"rating": "sideways"}, 400, "rating"),
        ({"rating": None}, 400, "rating"),
        ({"image": None}, 400, None),
        ({"question": "  "}, 400, None),
        ({"correction": "   "}, 400, "correction"),
        ({"correction": ""}, 400, "correction"),
        ({"correction": 5}, 400, "correction"),
        ({"correction": "x" * 2001}, 400, "correction"),
        ({"correction": "a\x00cat"}, 400, "correction"),
        ({"correction": "<image> a cat"}, 400, "correction"),
        ({"question": "x" * 8001}, 400, "question"),
        ({"question": "<image><image> what?"}, 400, "question"),
        ({"answer": "x" * 40_000}, 400, "answer"),
        ({"image": "data:image/png;base64,AAAA"}, 400, "image"),
        ({"image": "data:image/png;base64,!!!"}, 400, "image"),
        ({"image": data_url(png("red")[:60])}, 400, "image"),
        ({"image": data_url(b"<svg/>", "svg+xml")}, 400, "image"),
        ({"image": data_url(BOMB)}, 400, "image"),
        ({"image": "http://169.254.169.254/x.png"}, 400, "image"),
        ({"image": "file:///etc/passwd"}, 400, "image"),
        ({"image": ["data:"]}, 400, "image"),
        ({"task": "../etc"}, 400, "task"),
        ({"task": "BAD NAME"}, 400, "task"),
        ({"task": "x" * 64}, 400, "task"),
        ({"version": "../v1"}, 400, "version"),
        ({"version": "stable"}, 400, "version"),
        ({"version": "v999"}, 404, "version"),
        ({"request_id": "a\r\nb"}, 400, "request_id"),
        ({"surprise": 1}, 400, "surprise"),
    ],
)
def test_unusable_feedback_is_refused_and_kept_nowhere(
    running: RunningGateway, http: httpx.Client, changes: dict[str, Any], status: int, param: str | None
):
    before = sorted(path for path in (running.home / "feedback").rglob("*"))
    answer = http.post(FEEDBACK, json=body(**{"task": "refused", **changes}))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert isinstance(error["code"], str)
    assert error["message"]
    assert error["param"] in (param, None) if param == "version" else error["param"] == param
    assert "/tmp" not in answer.text
    assert sorted(path for path in (running.home / "feedback").rglob("*")) == before


def test_every_fault_is_named_at_once(http: httpx.Client):
    bad = body(rating="?", task="NO", version="?", image="x", correction=" ", surprise=1)
    message = http.post(FEEDBACK, json=bad).json()["error"]["message"]
    for name in ("rating", "task", "version", "image", "correction", "surprise"):
        assert f"{name}: " in message
    content = body(correction="a\x00cat", question="<image><image>?", image=data_url(png("red")[:60]))
    message = http.post(FEEDBACK, json=content).json()["error"]["message"]
    assert "question: " in message
    assert "correction: " in message


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"rating": "down", "correction": "\\ud800"}', b"[" * 10_000, b"\xff"]
)
def test_bodies_that_are_no_feedback(http: httpx.Client, content: bytes):
    answer = http.post(FEEDBACK, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_teaching_needs_the_scope(running: RunningGateway):
    answer = httpx.post(
        f"{running.url}{FEEDBACK}", json=body(), headers={"authorization": f"Bearer {ASK_KEY}"}
    )
    assert answer.status_code == 403


def test_by_age_they_are_sent_without_another_request(tmp_path: Path, tiny_base: Path):
    running = RunningGateway(tmp_path, tiny_base, feedback_seconds=0.3).wait_ready()
    try:
        assert given(running.http)["status"] == "pending"
        wait_for(lambda: standing(running.http, "animals")["last_job"] is not None, 30)
        assert standing(running.http, "animals")["count"] == 0
    finally:
        running.stop()


def test_without_redis_they_wait_and_are_queued_once_it_is_back(tmp_path: Path, tiny_base: Path):
    redis = RedisServer.start(tmp_path / "elsewhere")
    running = RunningGateway(
        tmp_path / "home", tiny_base, redis_url=redis.url, feedback_count=2, feedback_seconds=2
    ).wait_ready()
    try:
        sent = given(running.http, task="sent")
        job = running.http.post(f"{FEEDBACK}/sent/send").json()["id"]
        redis.stop()
        for record in (running.home / "jobs").rglob(f"*{job}*"):
            record.unlink()
        untold = running.http.get(f"{FEEDBACK}/sent/{sent['id']}").json()
        assert (untold["status"], untold["job"]) == ("unknown", job)
        assert untold["reasons"] == ["the job queue cannot be asked now; ask again later"]
        assert given(running.http, size=20)["status"] == "pending"
        second = given(running.http, size=21)
        assert (second["status"], second["pending"]["count"]) == ("pending", 2)
        refused = running.http.post(f"{FEEDBACK}/animals/send")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        third = given(running.http, size=22)
        assert third["pending"]["count"] == 3
        assert running.http.post("/v1/chat/completions", json=chat_body()).status_code == 200
        redis = RedisServer.start(tmp_path / "elsewhere")
        wait_for(lambda: standing(running.http, "animals")["count"] == 0, 60)
        jobs = running.http.get("/v1/fine_tuning/jobs").json()["data"]
        assert sum(each["dataset"]["examples"] for each in jobs if each["task"] == "animals") == 3
    finally:
        running.stop()
        redis.stop()


def test_two_gateways_on_one_home_share_what_waits(tmp_path: Path, tiny_base: Path):
    redis = RedisServer.start(tmp_path / "elsewhere")
    settings: dict[str, Any] = {"redis_url": redis.url, "feedback_count": 2, "feedback_seconds": 0}
    gateways = [RunningGateway(tmp_path / "home", tiny_base, **settings) for _ in range(2)]
    try:
        one, other = (gateway.wait_ready().http for gateway in gateways)
        first = given(one, size=20)
        assert first["status"] == "pending"
        assert other.get(f"{FEEDBACK}/animals/{first['id']}").json()["status"] == "pending"
        second = given(other, size=21)
        assert (second["status"], second["pending"]["count"]) == ("queued", 0)
        again = given(one, size=20)
        assert (again["status"], again["job"]) == ("queued", second["job"])
        assert given(one, size=22)["status"] == "pending"
        gateways[0].stop()
        sent = other.post(f"{FEEDBACK}/animals/send")
        assert sent.status_code == 202, sent.text
        jobs = other.get("/v1/fine_tuning/jobs").json()["data"]
        assert [job["dataset"]["examples"] for job in jobs] == [1, 2]
    finally:
        for gateway in gateways:
            if gateway._thread.is_alive():
                gateway.stop()
        redis.stop()
