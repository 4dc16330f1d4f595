"""Canary and shadow over real HTTP: shares, stickiness, failures, decisions, promotion under load."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from adapter_store.versions import Manifest
from server.cli.main import main
from tests.contract.conftest import ASK_KEY, KEY, RunningGateway, chat_body, wait_for
from tests.contract.publishing import PICTURE, Publisher
from tests.contract.test_live_versions import ask, fingerprint, move, text_of, wrong_probe

CANARY = "/v1/adapters/strata/canary"
ALIASES = "/v1/adapters/strata/aliases"


@pytest.fixture(scope="module")
def second(publisher: Publisher) -> Manifest:
    return publisher.publish(publisher.state(2))


@pytest.fixture(autouse=True)
def first_is_stable(running: RunningGateway, first: Manifest) -> Iterator[None]:
    move(running, first.version)
    yield
    for alias in ("canary", "shadow"):
        running.http.delete(f"{ALIASES}/{alias}")
    wait_for(lambda: {seen["slot"] for seen in show(running)["versions"]} == {"stable"})


def show(running: RunningGateway) -> dict[str, Any]:
    answer = running.http.get(CANARY)
    assert answer.status_code == 200, answer.text
    return answer.json()


def begin(running: RunningGateway, version: str, weight: float, alias: str = "canary") -> dict[str, Any]:
    """Name a version and wait until it takes its share."""
    answer = running.http.put(
        f"{ALIASES}/{alias}", json={"version": version, "weight": weight, "reason": "a try"}
    )
    assert answer.status_code == 200, answer.text
    wait_for(lambda: show(running)[alias]["answering"])
    wait_for(lambda: alias in {seen["slot"] for seen in show(running)["versions"]})
    return answer.json()


def version_of(answer: httpx.Response) -> str:
    return answer.headers["x-adapter-version"]


def seen_of(running: RunningGateway, slot: str) -> dict[str, Any]:
    return next(seen for seen in show(running)["versions"] if seen["slot"] == slot)


def history(running: RunningGateway) -> list[dict[str, Any]]:
    return running.http.get(f"{ALIASES}/canary/history").json()["data"]


def test_a_share_of_the_askers_is_answered_by_the_canary_and_stays_with_it(
    running: RunningGateway, publisher: Publisher, first: Manifest, second: Manifest
):
    whole = running.http.put(f"{ALIASES}/canary", json={"version": second.version, "weight": 1})
    assert whole.json()["weight"] == 1.0
    record = begin(running, second.version, 0.5)
    assert (record["weight"], record["ended"]) == (0.5, False)
    expected = {
        manifest.version: publisher.logprobs(publisher.state(seed))
        for seed, manifest in ((1, first), (2, second))
    }
    met: dict[str, str] = {}
    for name in [f"person-{number}" for number in range(24)]:
        answers = [ask(running, user=name) for _ in range(2)]
        assert version_of(answers[0]) == version_of(answers[1])
        met[name] = version_of(answers[0])
        assert answers[0].json()["system_fingerprint"] == met[name]
        assert expected[met[name]] == fingerprint(answers[0])
    assert set(met.values()) == set(expected)
    assert expected[first.version] != expected[second.version]
    drawn = [name for name, version in met.items() if version == second.version]
    assert version_of(ask(running, "strata@stable", user=drawn[0])) == first.version
    assert version_of(ask(running, "strata@canary", user=drawn[0])) == second.version
    assert seen_of(running, "canary")["requests"] == 2 * len(drawn)
    assert seen_of(running, "stable")["requests"] == 2 * (24 - len(drawn))
    begin(running, second.version, 0.9)
    assert {version_of(ask(running, user=name)) for name in drawn} == {second.version}


def test_a_conversation_and_a_stream_stay_with_one_version(
    running: RunningGateway, first: Manifest, second: Manifest
):
    begin(running, second.version, 0.5)
    met = set()
    for number in range(12):
        body = chat_body(f"Which digit is it? {number}", image=PICTURE)
        opening = running.http.post("/v1/chat/completions", json=body)
        met.add(version_of(opening))
        body["messages"] += [
            {"role": "assistant", "content": text_of(opening)},
            {"role": "user", "content": "Are you sure?"},
        ]
        with running.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
            assert stream.headers["x-adapter-version"] == version_of(opening)
            assert stream.headers["x-accel-buffering"] == "no"
            events = [line for line in stream.iter_lines() if line.startswith("data: {")]
        assert json.loads(events[-1].removeprefix("data: "))["system_fingerprint"] == version_of(opening)
        parts = {"question": f"Which digit is it? {number}", "max_tokens": "6"}
        short = [
            running.http.post("/v1/vqa", data=parts, files={"image": ("p.png", PICTURE)}).json()["version"]
            for _ in range(2)
        ]
        assert short[0] == short[1]
    assert met == {first.version, second.version}
    counted = sum(seen["requests"] for seen in show(running)["versions"])
    assert counted == 12 * 4


def test_a_canary_whose_probe_fails_answers_nobody_and_says_why(
    running: RunningGateway, publisher: Publisher, first: Manifest
):
    bad = publisher.publish(publisher.state(7), probe=wrong_probe(publisher, 7))
    named = running.http.put(f"{ALIASES}/canary", json={"version": bad.version, "weight": 1.0})
    assert named.status_code == 200
    wait_for(lambda: bad.version in running.http.get("/ready").json()["refused"])
    assert {version_of(ask(running, user=str(number))) for number in range(6)} == {first.version}
    wait_for(lambda: "probe" in (show(running)["canary"]["reason"] or ""))
    shown = show(running)["canary"]
    assert (shown["version"], shown["answering"]) == (bad.version, False)
    assert running.metric("strata_slot_ready", slot="canary") == 0
    assert running.http.get("/ready").json()["version"] == first.version
    assert running.http.post(f"{CANARY}:promote").status_code == 409
    assert running.http.get(f"{ALIASES}/stable").json()["version"] == first.version


def test_answers_that_fail_end_the_canary_and_leave_stable_alone(
    running: RunningGateway, first: Manifest, second: Manifest, monkeypatch: pytest.MonkeyPatch
):
    runner: Any = running.gateway.serving.engine._runner  # type: ignore[union-attr]
    embed = runner._embed

    def short_of_memory(piece: Any) -> Any:
        if piece.sequence.request.version == second.version:
            raise torch.OutOfMemoryError("no memory left")
        return embed(piece)

    begin(running, second.version, 1.0)
    before = running.metric("strata_slot_errors_total", slot="stable")
    ended = running.metric("strata_canary_decisions_total", decision="errors") or 0.0
    monkeypatch.setattr(runner, "_embed", short_of_memory)
    body = {**chat_body(image=PICTURE), "model": "strata"}
    statuses = [running.http.post("/v1/chat/completions", json=body).status_code for _ in range(3)]
    assert statuses == [503, 503, 503]
    wait_for(lambda: show(running)["canary"] is None)
    assert version_of(ask(running)) == first.version
    assert running.metric("strata_slot_errors_total", slot="stable") == before
    assert running.metric("strata_canary_decisions_total", decision="errors") == ended + 1
    last = show(running)["last_end"]
    assert (last["version"], last["actor"]) == (second.version, "gateway")
    assert "3 of 3 requests failed" in last["reason"]
    assert history(running)[-1]["ended"] is True
    assert running.http.get(f"{ALIASES}/canary").status_code == 404
    monkeypatch.undo()
    begin(running, second.version, 1.0)
    assert version_of(ask(running)) == second.version


def test_a_canary_that_is_slower_than_the_rule_allows_ends(
    running: RunningGateway, first: Manifest, second: Manifest, monkeypatch: pytest.MonkeyPatch
):
    runner: Any = running.gateway.serving.engine._runner  # type: ignore[union-attr]
    embed = runner._embed

    def slow(piece: Any) -> Any:
        if piece.sequence.request.version == second.version:
            time.sleep(0.3)
        return embed(piece)

    begin(running, second.version, 0.5)
    monkeypatch.setattr(runner, "_embed", slow)
    for number in range(300):
        ask(running, user=f"patient-{number}", max_tokens=1)
        if show(running)["canary"] is None:
            break
    last = show(running)["last_end"]
    assert (last["version"], "1.5 times as long" in last["reason"]) == (second.version, True), last
    assert version_of(ask(running)) == first.version
    assert running.metric("strata_canary_decisions_total", decision="slowdown") == 1


def test_what_the_client_got_wrong_counts_for_nobody(running: RunningGateway, second: Manifest):
    begin(running, second.version, 1.0)
    broken = {**chat_body(image=b"no picture"), "model": "strata"}
    assert running.http.post("/v1/chat/completions", json=broken).status_code == 400
    assert seen_of(running, "canary")["requests"] == 0


def test_thumbs_that_point_down_end_the_canary(running: RunningGateway, second: Manifest):
    begin(running, second.version, 1.0)
    thumb = {"rating": "down", "version": second.version}
    for _ in range(12):  # one answer, one thumb
        assert running.http.post("/v1/feedback", json={**thumb, "request_id": "req-0"}).status_code == 200
    wait_for(lambda: seen_of(running, "canary")["thumbs_down"] == 1)
    for number in range(1, 10):
        rated = running.http.post("/v1/feedback", json={**thumb, "request_id": f"req-{number}"})
        assert rated.status_code == 200
    wait_for(lambda: show(running)["canary"] is None)
    assert "10 of 10 thumbs point down" in show(running)["last_end"]["reason"]


def test_a_shadow_is_compared_and_answers_nobody(
    running: RunningGateway, publisher: Publisher, first: Manifest, second: Manifest
):
    twin = publisher.publish(publisher.state(1))
    wanted = text_of(ask(running))

    def compared(outcome: str) -> float:
        return running.metric("strata_shadow_compared_total", outcome=outcome) or 0.0

    for version, outcome in ((twin.version, "same"), (second.version, "different")):
        before, dropped = compared(outcome), compared("dropped")
        begin(running, version, 1.0, alias="shadow")
        for number in range(3):
            answer = ask(running, user=str(number))
            assert (version_of(answer), text_of(answer)) == (first.version, wanted)
        wait_for(lambda b=before, o=outcome, d=dropped: compared(o) + compared("dropped") - b - d == 3)
        assert compared(outcome) > before
        wait_for(lambda: show(running)["agreement"]["compared"] > 0)
        agreement = show(running)["agreement"]
        assert agreement["ratio"] == (1.0 if outcome == "same" else 0.0)
    counted = sum(compared(outcome) for outcome in ("same", "different", "dropped", "failed"))
    ask(running, temperature=1.0, seed=7)
    ask(running, n=2)
    assert sum(compared(outcome) for outcome in ("same", "different", "dropped", "failed")) == counted
    assert compared("failed") == 0
    assert running.metric("strata_slot_requests_total", slot="shadow")


def test_promotion_under_load_loses_no_request(
    running: RunningGateway, publisher: Publisher, first: Manifest, second: Manifest
):
    begin(running, second.version, 0.3)
    expected = {
        manifest.version: publisher.logprobs(publisher.state(seed))
        for seed, manifest in ((1, first), (2, second))
    }
    seen: list[tuple[str, Any]] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def keep_asking(thread: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                answer = ask(running, user=f"{thread}-{number}")
                seen.append((version_of(answer), fingerprint(answer)))
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: {version for version, _ in seen} == set(expected))
        promoted = running.http.post(f"{CANARY}:promote", json={"reason": "better"})
        assert promoted.status_code == 200, promoted.text
        wait_for(lambda: running.http.get("/ready").json()["version"] == second.version)
        before = len(seen)
        wait_for(lambda: len(seen) > before + 12)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert failed == []
    assert all(expected[version] == found for version, found in seen)
    assert {version for version, _ in seen[-4:]} == {second.version}
    body = promoted.json()
    assert (body["decision"], body["version"], body["canary"]) == ("promoted", second.version, None)
    assert body["stable"]["reason"] == "the canary was promoted: better"
    assert running.http.get(f"{ALIASES}/previous").json()["version"] == first.version
    assert history(running)[-1]["reason"] == "promoted: better"


def test_rolling_back_ends_it_and_the_tag_guards_the_decision(
    running: RunningGateway, first: Manifest, second: Manifest
):
    begin(running, second.version, 1.0)
    tag = running.http.get(CANARY).headers["etag"]
    lost = running.http.post(f"{CANARY}:rollback", headers={"if-match": '"9999"'})
    assert (lost.status_code, lost.json()["error"]["code"]) == (409, "alias_conflict")
    back = running.http.post(f"{CANARY}:rollback", json={"reason": "not now"}, headers={"if-match": tag})
    assert (back.status_code, back.json()["decision"]) == (200, "rolled_back")
    wait_for(lambda: version_of(ask(running)) == first.version)
    assert show(running)["last_end"]["reason"] == "rolled back: not now"
    for action in ("promote", "rollback"):
        none = running.http.post(f"{CANARY}:{action}")
        assert (none.status_code, none.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("PUT", f"{ALIASES}/canary", {"version": "v1", "weight": 1.5}, 400, "weight"),
        ("PUT", f"{ALIASES}/canary", {"version": "v1", "weight": -0.1}, 400, "weight"),
        ("PUT", f"{ALIASES}/canary", {"version": "v1", "weight": "0.5"}, 400, "weight"),
        ("PUT", f"{ALIASES}/canary", {"version": "v1", "weight": True}, 400, "weight"),
        ("PUT", f"{ALIASES}/stable", {"version": "v1", "weight": 0.1}, 400, "weight"),
        ("PUT", f"{ALIASES}/canary", {"version": "v999", "weight": 0.1}, 404, None),
        ("DELETE", f"{ALIASES}/stable", None, 400, "alias"),
        ("DELETE", f"{ALIASES}/shadow", None, 404, "alias"),
        ("DELETE", f"{ALIASES}/v1", None, 400, "alias"),
        ("POST", f"{CANARY}:promote", {"why": "x"}, 400, "why"),
        ("POST", f"{CANARY}:promote", [], 400, None),
        ("GET", "/v1/adapters/other/canary", None, 404, "name"),
        ("POST", "/v1/adapters/other/canary:promote", {}, 404, "name"),
    ],
)
def test_faults_are_said(
    running: RunningGateway, method: str, path: str, body: Any, status: int, param: str | None
):
    answer = running.http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert param is None or param in str(error["param"]) or param in error["message"]


def test_a_weight_that_is_no_number_is_refused(running: RunningGateway):
    body = '{"version": "v1", "weight": NaN}'
    answer = running.http.put(f"{ALIASES}/canary", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text


def test_looking_needs_a_key_that_may_ask_and_deciding_one_that_operates(running: RunningGateway):
    mine = {"authorization": f"Bearer {ASK_KEY}"}
    assert running.http.get(CANARY, headers=mine).status_code == 200
    assert running.http.post(f"{CANARY}:promote", headers=mine).status_code == 403
    assert running.http.delete(f"{ALIASES}/canary", headers=mine).status_code == 403


def run(running: RunningGateway, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main([*words, "--url", running.url, "--api-key", KEY])
    return status, capsys.readouterr().out


def test_the_command_line_sets_shows_and_decides(
    running: RunningGateway, second: Manifest, capsys: pytest.CaptureFixture[str]
):
    status, text = run(running, capsys, "canary", "set", second.version, "--weight", "0.25", "--json")
    assert (status, json.loads(text)["weight"]) == (0, 0.25)
    wait_for(lambda: show(running)["canary"]["answering"])
    status, text = run(running, capsys, "canary")
    assert status == 0
    assert f"canary: {second.version}, 25.0 % of the requests\n" in text
    assert "shadow: none" in text
    status, text = run(running, capsys, "shadow", "set", second.version)
    assert (status, f"shadow: {second.version}, 100.0 % of the requests" in text) == (0, True)
    status, text = run(running, capsys, "shadow", "--json")
    assert json.loads(text)["rule"]["min_requests"] == 50
    assert run(running, capsys, "shadow", "end")[0] == 0
    status, text = run(running, capsys, "canary", "rollback", "--reason", "enough", "--json")
    assert (status, json.loads(text)["decision"]) == (0, "rolled_back")
    status, text = run(running, capsys, "canary")
    assert "canary: none" in text
    assert "rolled back: enough" in text
    assert run(running, capsys, "canary", "promote")[0] == 2
    for words in (("canary", "set"), ("canary", "set", "v1", "--weight", "2"), ("shadow", "end", "v1")):
        assert run(running, capsys, *words)[0] == 2
