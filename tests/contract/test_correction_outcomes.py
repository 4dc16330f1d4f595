"""What became of corrections is told over HTTP and by the command."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.cli.main import main
from server.feedback.desk import SendingPolicy
from tests.contract.conftest import KEY, RunningGateway, wait_for
from tests.contract.correcting import FEEDBACK, given, standing
from tests.contract.pictures import png
from tests.contract.publishing import Publisher
from tests.contract.test_teaching import claimed

COUNT = 3


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path):
    """Return a gateway that sends corrections half a second after they came."""
    home = tmp_path_factory.mktemp("aged")
    with RunningGateway(home, tiny_base, feedback_seconds=0.5) as gateway:
        yield gateway.wait_ready()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path):
    """Return a gateway that sends at three corrections of a task, and never by age."""
    home = tmp_path_factory.mktemp("home")
    with RunningGateway(home, tiny_base, feedback_count=COUNT, feedback_seconds=0) as gateway:
        yield gateway.wait_ready()


def outcome(http: httpx.Client, correction: dict[str, Any]) -> dict[str, Any]:
    answer = http.get(f"{FEEDBACK}/{correction['task']}/{correction['id']}")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("status", "gate", "expected"),
    [
        ("succeeded", {"passed": True, "reasons": [], "promotion": "promoted"}, ("learned", "v4", [])),
        (
            "succeeded",
            {"passed": False, "reasons": ["digits fell"], "promotion": "held_back"},
            ("held_back", "v4", ["digits fell"]),
        ),
        (
            "succeeded",
            {"passed": True, "reasons": [], "promotion": "conflict"},
            ("not_served", "v4", ["stable was moved while it was learned"]),
        ),
        (
            "succeeded",
            {"passed": True, "reasons": [], "promotion": "superseded"},
            ("learned", "v4", []),
        ),
        ("failed", None, ("failed", None, ["no room"])),
    ],
    ids=["learned", "held back", "stable moved", "moved since", "failed"],
)
def test_what_becomes_of_a_correction_is_told(
    running: RunningGateway, http: httpx.Client, status: str, gate: Any, expected: tuple[Any, ...]
):
    task = f"fate-{(gate or {'promotion': status})['promotion'].replace('_', '-')}"
    first = given(http, task=task)
    waits = outcome(http, first)
    assert (waits["task"], waits["status"], waits["job"], waits["pending"]["count"]) == (
        task,
        "pending",
        None,
        1,
    )
    assert standing(http, task)["last_outcome"] is None
    job = http.post(f"{FEEDBACK}/{task}/send").json()["id"]
    assert (outcome(http, first)["status"], outcome(http, first)["job"]) == ("queued", job)
    queue = running.gateway.link.queue()
    while (claim := queue.claim("w")) is not None and claim.job.id != job:
        claim.finish("cancelled")
    assert claim is not None
    assert outcome(http, first)["status"] == "running"
    assert http.get(f"{FEEDBACK}/other/{first['id']}").status_code == 404, "it is of this task alone"
    error = None if gate else {"code": "input_error", "message": "no room", "param": None}
    version = "v4" if gate else None
    claim.finish(status, decision="expand", result_version=version, gate=gate, error=error)
    ended = outcome(http, first)
    assert http.get(f"/v1/fine_tuning/jobs/{job}").json()["outcome"] == ended["status"]
    assert (ended["status"], ended["version"], ended["reasons"]) == expected
    assert standing(http, task)["last_outcome"] == {
        key: ended[key] for key in ("job", "status", "version", "reasons")
    }


@pytest.mark.parametrize("is_held_back", [False, True], ids=["stable moved", "held back"])
def test_what_is_promoted_by_hand_is_learned(
    running: RunningGateway,
    http: httpx.Client,
    publisher: Publisher,
    capsys: pytest.CaptureFixture[str],
    is_held_back: bool,
):
    task = f"by-hand-{is_held_back}".lower()
    first = given(http, task=task)
    job = http.post(f"{FEEDBACK}/{task}/send").json()["id"]
    claim = claimed(running.gateway.link.queue(), job)
    reasons = ["digits fell"] if is_held_back else []
    version = publisher.publish(publisher.state(1), job=job, reasons=tuple(reasons)).version
    promotion = "held_back" if is_held_back else "conflict"
    gate = {"passed": not is_held_back, "reasons": reasons, "promotion": promotion}
    claim.finish("succeeded", decision="expand", result_version=version, gate=gate)
    words = ["jobs", job, "--wait", "--json", "--url", running.url, "--api-key", KEY]
    before = "held_back" if is_held_back else "not_served"
    for told, status in ((before, 3), ("learned", 0)):
        assert main(words) == status
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["outcome"] == told
        listed = http.get("/v1/jobs", params={"limit": 100}).json()["data"]
        assert {each["id"]: each["outcome"] for each in listed}[job] == told
        found = outcome(http, first)
        assert (found["status"], found["reasons"] == []) == (told, told == "learned")
        assert standing(http, task)["last_outcome"]["status"] == told
        moved = http.put("/v1/adapters/strata/aliases/stable", json={"version": version})
        assert moved.status_code == 200, moved.text
    assert http.post("/v1/adapters/strata/rollback", json={}).status_code == 200
    assert outcome(http, first)["status"] == "learned", "it was served"


def test_a_thumb_alone_has_no_fate(http: httpx.Client):
    thumb = given(http, correction=None)
    nowhere = http.get(f"{FEEDBACK}/animals/{thumb['id']}")
    assert nowhere.status_code == 404
    assert "waits or was given lately; a thumb alone is not followed" in nowhere.json()["error"]["message"]
    assert http.get(f"{FEEDBACK}/BAD NAME/{thumb['id']}").status_code == 400


def test_what_no_job_has_is_told_with_the_reason(running: RunningGateway, http: httpx.Client):
    first, last = given(http, task="changed"), given(http, task="changed", correction="a tiger")
    ended = outcome(http, first)
    assert (ended["status"], ended["job"], ended["version"]) == ("replaced", None, None)
    assert ended["reasons"] == ["a later answer to the same question replaced it"]
    assert outcome(http, last)["status"] == "pending"
    (picture,) = (running.home / "feedback" / "changed" / "open").glob("*.picture")
    picture.write_bytes(b"no picture any more")
    assert http.post(f"{FEEDBACK}/changed/send").status_code == 409
    ended = outcome(http, last)
    assert (ended["status"], ended["job"]) == ("refused", None)
    assert "cannot be learned and was set aside: the bytes are not a JPEG" in ended["reasons"][0]
    assert outcome(http, first)["status"] == "replaced"
    again = given(http, task="changed")
    assert (again["id"], outcome(http, again)["status"]) == (first["id"], "pending")


def test_a_correction_that_nobody_can_read_stops_no_other(running: RunningGateway, http: httpx.Client):
    lost = given(http, task="unread")
    (path,) = (running.home / "feedback" / "unread" / "open").glob("*.json")
    path.unlink()
    path.symlink_to(path.name)  # a link to itself: reading it fails, whatever one's rights
    other = given(http, task="unread", size=29)
    assert outcome(http, lost)["status"] == outcome(http, other)["status"] == "pending"
    job = http.post(f"{FEEDBACK}/unread/send").json()["id"]
    assert (outcome(http, other)["status"], outcome(http, other)["job"]) == ("queued", job)
    assert (standing(http, "unread")["count"], standing(http, "unread")["refused"]) == (0, 1)
    assert outcome(http, lost)["status"] == "refused"
    assert "its file could not be read when the others" in outcome(http, lost)["reasons"][0]
    damaged = given(http, task="unread", size=30)
    (path,) = (running.home / "feedback" / "unread" / "open").glob("*.json")
    path.write_text("{")
    wait_for(lambda: outcome(http, damaged)["status"] == "refused", 30)
    assert "its file is damaged" in outcome(http, damaged)["reasons"][0]


def test_the_command_says_why_its_correction_was_set_aside(
    running: RunningGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    picture = tmp_path / "cat.png"
    picture.write_bytes(png("blue"))
    words = ["correct", "--image", str(picture), "What is shown?", "a cat", "--task", "unusable"]
    words += ["--url", running.url, "--api-key", KEY]
    assert main(words) == 0
    (kept,) = (running.home / "feedback" / "unusable" / "open").glob("*.picture")
    kept.write_bytes(b"no picture any more")
    capsys.readouterr()
    assert main([*words, "--now", "--wait"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "in no job of unusable: it cannot be learned and was set aside: the bytes are not" in said


def test_the_command_corrects(running: RunningGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "cat.png"
    picture.write_bytes(png("blue"))
    words = ["correct", "--image", str(picture), "What is shown?", "a cat", "--task", "spoken"]
    words += ["--url", running.url, "--api-key", KEY]
    assert main(words) == 0
    kept = "kept: 1 correction waits for spoken; queued once there are 3, or with --now"
    assert kept in capsys.readouterr().out
    assert main([*words, "--wait"]) == 4
    assert "queued once 3 of spoken wait and never by age; add --now" in capsys.readouterr().err
    assert main([*words, "--json", "--now"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "queued"
    assert running.gateway.link.queue().get(told["job"]).task == "spoken"
    assert main([*words[:4], "", *words[5:]]) == 2
    assert "ANSWER: it is empty" in capsys.readouterr().err


def test_the_command_does_not_take_the_end_of_another_correction_for_its_own(
    running: RunningGateway,
    http: httpx.Client,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(running.gateway.feedback, "policy", SendingPolicy(COUNT, 600))
    picture = tmp_path / "red.png"
    picture.write_bytes(png("red", 28))

    def replace_and_send() -> None:
        wait_for(lambda: running.gateway.feedback.store.standing("contested").count == 1, 30)
        given(http, task="contested", correction="a tiger")
        http.post(f"{FEEDBACK}/contested/send")

    other = threading.Thread(target=replace_and_send)
    other.start()
    words = ["correct", "--image", str(picture), "What is shown?", "a cat", "--task", "contested", "--wait"]
    try:
        assert main([*words, "--url", running.url, "--api-key", KEY]) == 1
    finally:
        other.join()
    assert standing(http, "contested")["last_job"]
    said = " ".join(capsys.readouterr().err.split())
    assert "a later answer to the same question replaced it" in said


GATE = {"passed": True, "reasons": [], "promotion": "promoted"}
HELD = {"passed": False, "reasons": ["colors fell from 1.000 to 0.500"], "promotion": "held"}


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        ({"status": "succeeded", "result_version": "v1", "gate": GATE}, 0, "taught: v1 was served"),
        ({"status": "succeeded", "result_version": "v1", "gate": HELD}, 3, "because colors fell from 1.000"),
        ({"status": "failed", "error": {"message": "no room", "code": "x"}}, 1, "failed: no room"),
    ],
)
def test_the_command_waits_until_its_correction_was_learned(
    aged: RunningGateway,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    outcome: dict[str, Any],
    status: int,
    said: str,
):
    """What is queued by age is followed, whatever was sent of the task before."""
    picture = tmp_path / "cat.png"
    picture.write_bytes(png("blue"))
    task = f"ends-{status}"
    assert given(aged.http, task=task, size=40)["status"] == "pending"
    wait_for(lambda: standing(aged.http, task)["last_job"] is not None, 30)
    first = standing(aged.http, task)["last_job"]
    learned: list[str] = []

    def learn() -> None:
        wait_for(lambda: standing(aged.http, task)["last_job"] != first, 30)
        claim = claimed(aged.gateway.link.queue(), standing(aged.http, task)["last_job"])
        learned.append(claim.job.id)
        claim.update(status="running", phase="train")
        claim.event("train", type="phase", data={"phase": "train"})
        claim.event("step 1/2", type="metrics", data={"step": 1, "total_steps": 2, "eta_seconds": 7})
        time.sleep(1)
        claim.finish(outcome["status"], **{k: v for k, v in outcome.items() if k != "status"})

    worker = threading.Thread(target=learn)
    worker.start()
    words = ["correct", "--image", str(picture), "What is shown?", "a cat", "--task", task, "--wait"]
    try:
        assert main([*words, "--url", aged.url, "--api-key", KEY]) == status
    finally:
        worker.join()
    shown = capsys.readouterr()
    assert "kept: 1 correction waits" in shown.err
    assert "train the increments" in shown.err
    assert said in shown.out + shown.err
    assert len(learned) == 1
