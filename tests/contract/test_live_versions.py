"""Versions come and go while requests run: probe, swap, pin, refuse, roll back."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import torch

from adapter_store.base.load import Base
from adapter_store.versions import Manifest, Probe
from tests.contract.conftest import KEY, RunningGateway, chat_body, wait_for
from tests.contract.publishing import PICTURE, QUESTION, Publisher


@pytest.fixture(autouse=True)
def back_to_base(running: RunningGateway) -> Iterator[None]:
    yield
    move(running, "base")


def ask(running: RunningGateway, model: str = "strata", **more: Any) -> httpx.Response:
    answer = running.http.post(
        "/v1/chat/completions", json={**chat_body(image=PICTURE, logprobs=True, **more), "model": model}
    )
    assert answer.status_code == 200, answer.text
    return answer


def text_of(answer: httpx.Response) -> str:
    return answer.json()["choices"][0]["message"]["content"]


def fingerprint(answer: httpx.Response) -> Any:
    """Return the answer's log probabilities, to compare with ``Publisher.logprobs``."""
    found = answer.json()["choices"][0]["logprobs"]["content"]
    return pytest.approx([token["logprob"] for token in found], abs=1e-3)


def move(running: RunningGateway, version: str, alias: str = "stable") -> None:
    answer = running.http.put(f"/v1/adapters/strata/aliases/{alias}", json={"version": version})
    assert answer.status_code == 200, answer.text
    if alias == "stable":
        wait_for(lambda: running.http.get("/ready").json()["version"] == version)


def test_a_promoted_version_answers_as_its_state_says(
    running: RunningGateway, publisher: Publisher, first: Manifest
):
    assert publisher.logprobs(None) == fingerprint(ask(running))
    move(running, first.version)
    answer = ask(running)
    assert answer.headers["x-adapter-version"] == first.version
    assert answer.json()["system_fingerprint"] == first.version
    assert publisher.logprobs(publisher.state(1)) == fingerprint(answer)
    assert publisher.logprobs(None) != fingerprint(answer)
    assert publisher.logprobs(None) == fingerprint(ask(running, "strata@base"))
    assert running.metric("strata_routed_requests_total", task="digits")
    assert running.metric("strata_adapter_alias_info", alias="stable", version=first.version) == 1
    assert running.metric("strata_task_accuracy_ratio", task="digits") == 0.75
    assert running.metric("strata_routing_leak_ratio", task="digits") == 0.125
    assert running.metric("strata_adapter_swap_seconds_count")
    routing_seconds = running.metric("strata_routing_seconds_sum") or 0.0
    assert 0 < routing_seconds < (running.metric("strata_time_to_first_token_seconds_sum") or 0.0)


def test_vqa_names_version_and_task(running: RunningGateway, first: Manifest):
    parts = {"question": QUESTION, "model": f"strata@{first.version}", "max_tokens": "6"}
    answer = running.http.post("/v1/vqa", data=parts, files={"image": ("p.png", PICTURE)}).json()
    assert answer["answer"] == text_of(ask(running, f"strata@{first.version}")).strip()
    assert (answer["version"], answer["task"]) == (first.version, "digits")


def test_a_pinned_version_and_an_alias_are_loaded_on_demand(
    running: RunningGateway, publisher: Publisher, first: Manifest
):
    others = [publisher.publish(publisher.state(seed)) for seed in (2, 3)]
    for seed, manifest in zip((1, 2, 3), (first, *others), strict=True):
        answer = ask(running, f"strata@{manifest.version}")
        assert publisher.logprobs(publisher.state(seed)) == fingerprint(answer)
    move(running, others[0].version, alias="canary")
    assert ask(running, "strata@canary").headers["x-adapter-version"] == others[0].version
    ids = [model["id"] for model in running.http.get("/v1/models").json()["data"]]
    assert {"strata@canary", f"strata@{first.version}"} <= set(ids)


def test_requests_finish_on_the_version_they_began_with(
    running: RunningGateway, publisher: Publisher, first: Manifest
):
    """The stream's bank is the only one that could take the third version: that one has to wait for it."""
    second = publisher.publish(publisher.state(4))
    third = publisher.publish(publisher.state(11))
    whole = text_of(ask(running, f"strata@{first.version}", max_tokens=300))
    move(running, first.version)
    body = {**chat_body(image=PICTURE, max_tokens=300, stream=True), "model": "strata"}
    text = ""
    with running.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        assert stream.headers["x-adapter-version"] == first.version
        for number, line in enumerate(stream.iter_lines()):
            if number == 4:
                move(running, second.version)
                assert ask(running).headers["x-adapter-version"] == second.version
                aliases = running.gateway.store.aliases
                aliases.move("stable", third.version, reason="as a trainer would", actor="trainer")
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert event["system_fingerprint"] == first.version
                text += event["choices"][0]["delta"].get("content") or ""
    assert text == whole
    wait_for(lambda: running.http.get("/ready").json()["version"] == third.version)
    assert publisher.logprobs(publisher.state(11)) == fingerprint(ask(running))


def test_who_stops_reading_keeps_no_version_in_its_bank(
    running: RunningGateway, publisher: Publisher, first: Manifest
):
    """The answers, with all their log probabilities, are larger than what sockets take in between."""
    move(running, first.version)
    body = chat_body(image=PICTURE, max_tokens=700, stream=True)
    body |= {"model": "strata", "n": 8, "logprobs": True, "top_logprobs": 20, "temperature": 1.0}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    place = urlsplit(running.url)
    listening = running._server.servers[0].sockets[0]
    usual = listening.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2  # it tells twice what was set
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((place.hostname, place.port))
        lazy.sendall(head.encode() + data)
        assert lazy.recv(12) == b"HTTP/1.1 200"
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, usual)
        serving = running.gateway.serving
        assert serving is not None
        wait_for(lambda: serving.engine.loaded()[first.version] == 0)
        wait_for(lambda: sum(serving.live.inflight().values()) == 0, 10)
        read = 12
        lazy.settimeout(30)
        while piece := lazy.recv(1 << 20):
            read += len(piece)
            if piece.endswith(b"0\r\n\r\n"):
                break
        assert read > 1 << 19, "else nothing was held back"


def test_swaps_under_load_lose_no_request(running: RunningGateway, publisher: Publisher, first: Manifest):
    others = [publisher.publish(publisher.state(seed)) for seed in (5, 6)]
    states = {"base": None, first.version: publisher.state(1)}
    states |= {manifest.version: publisher.state(seed) for manifest, seed in zip(others, (5, 6), strict=True)}
    expected = {version: publisher.logprobs(state) for version, state in states.items()}
    seen: list[tuple[str, Any]] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                answer = ask(running)
                seen.append((answer.headers["x-adapter-version"], fingerprint(answer)))
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in (first.version, others[0].version, others[1].version, first.version, "base"):
        move(running, version)
        before = len(seen)
        wait_for(lambda before=before: len(seen) > before + 6)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert {version for version, _ in seen} == set(expected)
    assert all(expected[version] == found for version, found in seen)


def wrong_probe(publisher: Publisher, seed: int) -> Probe:
    ids, logprobs = publisher.greedy(publisher.state(seed))
    return Probe(
        question=QUESTION,
        image="probe.png",
        answer_token_ids=(ids[0] + 1, *ids[1:]),
        logprobs=tuple(logprobs),
    )


def test_a_failed_probe_never_serves_and_the_alias_is_put_back(
    running: RunningGateway, publisher: Publisher, first: Manifest
):
    move(running, first.version)
    bad = publisher.publish(publisher.state(7), probe=wrong_probe(publisher, 7))
    aliases = running.gateway.store.aliases
    aliases.move("stable", bad.version, reason="as a trainer would", actor="trainer")
    wait_for(lambda: aliases.history("stable")[-1].actor == "gateway")
    record = aliases.history("stable")[-1]
    assert record.version == first.version
    assert "probe" in record.reason
    assert ask(running).headers["x-adapter-version"] == first.version
    assert running.metric("strata_adapter_rejections_total", reason="probe_failed") == 1
    pinned = running.http.post("/v1/chat/completions", json={**chat_body(), "model": f"strata@{bad.version}"})
    assert pinned.status_code == 409
    assert pinned.headers["x-should-retry"] == "false"
    assert pinned.json()["error"]["code"] == "probe_failed"
    again = running.http.put("/v1/adapters/strata/aliases/stable", json={"version": bad.version})
    assert again.status_code == 409
    assert bad.version in running.http.get("/ready").json()["refused"]


def test_a_probe_that_the_engine_could_not_finish_refuses_nothing(
    running: RunningGateway, publisher: Publisher, first: Manifest, monkeypatch: pytest.MonkeyPatch
):
    move(running, first.version)
    good = publisher.publish(publisher.state(12))
    runner: Any = running.gateway.serving.engine._runner  # type: ignore[union-attr]
    embed = runner._embed

    def short_of_memory(piece: Any) -> Any:
        if piece.sequence.request.request_id.startswith("probe-"):
            raise torch.OutOfMemoryError("no memory left")
        return embed(piece)

    monkeypatch.setattr(runner, "_embed", short_of_memory)
    pinned = {**chat_body(), "model": f"strata@{good.version}"}
    assert running.http.post("/v1/chat/completions", json=pinned).status_code == 503
    aliases = running.gateway.store.aliases
    moved = aliases.move("stable", good.version, reason="as a trainer would", actor="trainer")
    failed = running.metric("strata_engine_failed_requests_total") or 0.0
    wait_for(lambda: (running.metric("strata_engine_failed_requests_total") or 0.0) > failed + 1)
    assert ask(running).headers["x-adapter-version"] == first.version
    monkeypatch.undo()
    wait_for(lambda: running.http.get("/ready").json()["version"] == good.version)
    assert aliases.get("stable") == moved
    assert good.version not in running.http.get("/ready").json()["refused"]


def test_a_version_whose_output_is_not_finite_is_refused(running: RunningGateway, publisher: Publisher):
    state = publisher.state(13)
    huge: dict[str, Any] = {
        side: {name: torch.full_like(tensor, 1e30) for name, tensor in getattr(state, side).items()}
        for side in ("up", "down")
    }
    probe = Probe(question=QUESTION, image="probe.png", answer_token_ids=(1,), logprobs=(0.0,))
    bad = publisher.publish(state.with_rows(range(4), **huge), probe=probe)
    pinned = {**chat_body(), "model": f"strata@{bad.version}"}
    answer = running.http.post("/v1/chat/completions", json=pinned)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "probe_failed")
    assert "not finite" in answer.json()["error"]["message"]


def test_log_probabilities_count_in_the_probe(running: RunningGateway, publisher: Publisher):
    ids, logprobs = publisher.greedy(publisher.state(8))
    off = (logprobs[0] - 0.5, *logprobs[1:])
    probe = Probe(question=QUESTION, image="probe.png", answer_token_ids=tuple(ids), logprobs=off)
    bad = publisher.publish(publisher.state(8), probe=probe)
    answer = running.http.post("/v1/chat/completions", json={**chat_body(), "model": f"strata@{bad.version}"})
    assert answer.status_code == 409
    assert "log probability" in answer.json()["error"]["message"]


def test_a_damaged_version_is_refused(running: RunningGateway, publisher: Publisher):
    bad = publisher.publish(publisher.state(9))
    tensors = next(Path(running.home).glob(f"versions/**/{bad.version}/state.safetensors"))
    tensors.chmod(0o644)
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(bytes(data))
    answer = running.http.post("/v1/chat/completions", json={**chat_body(), "model": f"strata@{bad.version}"})
    assert answer.status_code == 409
    assert str(running.home) not in answer.text
    path = "/v1/adapters/strata/aliases/canary"
    assert running.http.put(path, json={"version": bad.version}).status_code == 409
    assert bad.version in running.http.get("/ready").json()["refused"]
    data[-1] ^= 1
    tensors.write_bytes(bytes(data))
    assert running.http.put(path, json={"version": bad.version}).status_code == 200
    assert bad.version not in running.http.get("/ready").json()["refused"]
    answer = running.http.post("/v1/chat/completions", json={**chat_body(), "model": "strata@canary"})
    assert (answer.status_code, answer.headers["x-adapter-version"]) == (200, bad.version)
    running.http.delete(path)


def test_aliases_move_by_compare_and_set_and_roll_back(running: RunningGateway, first: Manifest):
    path = "/v1/adapters/strata/aliases/stable"
    tag = running.http.get(path).headers["etag"]
    moved = running.http.put(path, json={"version": first.version}, headers={"if-match": tag})
    assert moved.status_code == 200
    previous = "/v1/adapters/strata/aliases/previous"
    assert running.http.get(previous).json()["version"] == "base"
    lost = running.http.put(path, json={"version": "base"}, headers={"if-match": tag})
    assert lost.status_code == 409
    assert lost.json()["error"]["code"] == "alias_conflict"
    assert lost.headers["x-should-retry"] == "false"
    assert running.http.put(path, json={"version": "v999"}).status_code == 404
    assert running.http.put(path, json={"version": "../etc"}).status_code == 400
    assert running.http.put(path, json={"version": "base"}, headers={"if-match": "x"}).status_code == 400
    exists = running.http.put(path, json={"version": "base"}, headers={"if-none-match": "*"})
    assert exists.status_code == 409
    back = running.http.post("/v1/adapters/strata/rollback", json={})
    assert back.status_code == 200
    assert back.json()["version"] == "base"
    assert running.http.get(previous).json()["version"] == first.version
    by_hand = running.http.put(previous, json={"version": "base"})
    assert (by_hand.status_code, by_hand.json()["error"]["param"]) == (400, "alias")
    assert "to serve a version move stable" in by_hand.json()["error"]["message"]
    assert running.http.delete(previous).status_code == 400
    assert running.http.post("/v1/adapters/strata/rollback", json={"alias": "previous"}).status_code == 400
    assert running.http.get(previous).json()["version"] == first.version
    history = running.http.get(f"{path}/history").json()["data"]
    assert [record["revision"] for record in history] == list(range(1, len(history) + 1))


def test_moving_to_a_version_that_the_gate_held_back_says_so(running: RunningGateway, publisher: Publisher):
    held = publisher.publish(publisher.state(5), reasons=("digits fell by 6.0 points", "it leaks"))
    sound = publisher.publish(publisher.state(6))
    path = "/v1/adapters/strata/aliases/canary"
    moved = running.http.put(path, json={"version": held.version})
    assert moved.status_code == 200
    assert (
        moved.json()["warning"] == f"the gate held {held.version} back: digits fell by 6.0 points; it leaks"
    )
    assert "warning" not in running.http.put(path, json={"version": sound.version}).json()
    back = running.http.post("/v1/adapters/strata/rollback", json={"alias": "canary"}).json()
    assert (back["version"], "digits fell" in back["warning"]) == (held.version, True)


def test_moving_stable_to_a_version_that_knows_less_says_so(running: RunningGateway, publisher: Publisher):
    more = publisher.publish(publisher.state(7).expand("birds", rows=4))
    less = publisher.publish(publisher.state(8))
    move(running, more.version)
    path = "/v1/adapters/strata/aliases/stable"
    moved = running.http.put(path, json={"version": less.version}).json()
    assert moved["warning"] == f"{less.version} does not know birds, which {more.version} does"
    assert "warning" not in running.http.put(path, json={"version": more.version}).json()


def test_versions_and_matrix_are_shown(running: RunningGateway, first: Manifest):
    listed = running.http.get("/v1/adapters/strata/versions").json()
    assert first.version in [item["version"] for item in listed["data"]]
    shown = running.http.get(f"/v1/adapters/strata/versions/{first.version}").json()
    assert shown["routing_leak"] == {"digits": 0.125}
    matrix = running.http.get("/v1/evaluations/matrix", params={"version": first.version}).json()
    assert (matrix["tasks"], matrix["base"], matrix["rows"]) == (["digits"], [0.25], [[0.75]])
    assert matrix["average_accuracy"] == 0.75
    table = running.http.get("/v1/evaluations/matrix", params={"version": first.version, "format": "csv"})
    assert table.headers["content-type"].startswith("text/csv")
    assert table.text.splitlines() == ["stage,trained,digits", "base,,0.25", "1,digits,0.75"]
    assert running.http.get("/v1/adapters/other/versions").status_code == 404


def test_a_restart_falls_back_to_the_last_good_version(
    tmp_path: Path, tiny_base: Path, loaded_tiny_base: Base, running: RunningGateway
):
    from adapter_store.versions import VersionStore

    publisher = Publisher(loaded_tiny_base, VersionStore(tmp_path / "versions", "strata"))
    good = publisher.publish(publisher.state(1))
    bad = publisher.publish(publisher.state(2), probe=wrong_probe(publisher, 2))
    for version in (good.version, bad.version):
        publisher.store.aliases.move("stable", version, reason="test", actor="trainer")
    began = time.monotonic()
    other = RunningGateway(tmp_path, tiny_base, redis_url="unix:///nowhere.sock").wait_ready()
    try:
        assert other.http.get("/ready").json()["version"] == good.version
        record = publisher.store.aliases.get("stable")
        assert record is not None
        assert (record.version, record.actor) == (good.version, "gateway")
        assert time.monotonic() - began < 300
    finally:
        other.stop()
