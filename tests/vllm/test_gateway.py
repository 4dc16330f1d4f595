"""The whole gateway on vLLM, as a process: versions come and go, the engine dies, the gateway dies."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter_store.base import load_base
from adapter_store.versions import Probe, VersionStore
from server.launch.ports import free_port
from tests.contract.publishing import PICTURE, QUESTION, Publisher
from tests.tiny_llava import build_tiny_llava
from tests.vllm.conftest import ROOT

START_SECONDS = 240
NO_LOGGING_YET = ("[W", "Triton is installed, but")
"""How lines begin that torch's compiled part writes, and vLLM before it asks its plugins."""


class Served:
    """Hold a running gateway, what publishes into its store, and its engine's process."""

    def __init__(self, folder: Path) -> None:
        base = build_tiny_llava(folder / "base", head_dim=32)
        home = folder / "home"
        port = free_port()
        self.publisher = Publisher(
            load_base(base, dtype="float32", device="cpu"), VersionStore(str(home / "versions"), "strata")
        )
        flags = {"--home": home, "--base": base, "--port": port, "--engine": "vllm", "--frozen-share": 0}
        flags |= {"--kv-cache-memory-bytes": 32 << 20, "--threads": 1, "--alias-poll-seconds": 0.1}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STRATA_")}
        self.log = folder / "log"
        with self.log.open("w") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server", *(str(word) for pair in flags.items() for word in pair)],
                cwd=ROOT,
                env={**kept, "OMP_NUM_THREADS": "1"},
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def wait(self, reached: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                if reached():
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def ready(self) -> bool:
        return self.http.get("/ready").status_code == 200

    def ask(self, model: str = "strata") -> httpx.Response:
        url = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 6,
            "logprobs": True,
        }
        return self.http.post("/v1/chat/completions", json={**body, "temperature": 0})

    def promote(self, version: str) -> None:
        answer = self.http.put("/v1/adapters/strata/aliases/stable", json={"version": version})
        assert answer.status_code == 200, answer.text
        self.wait(lambda: self.serves(version))

    def serves(self, version: str) -> bool:
        return self.http.get("/ready").json().get("version") == version

    def engines(self) -> list[int]:
        listed = subprocess.run(
            ["ps", "-o", "pid=,stat=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        )
        rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
        return [int(pid) for pid, state, words in rows if "EngineCore" in words and "Z" not in state]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    try:
        served.wait(served.ready)
        yield served
    finally:
        served.http.close()
        served.process.kill()
        served.process.wait(30)


def fingerprint(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    found = answer.json()["choices"][0]["logprobs"]["content"]
    return pytest.approx([token["logprob"] for token in found], abs=1e-3)


def test_versions_are_proven_served_and_rolled_back(served: Served) -> None:
    publisher = served.publisher
    one, two = publisher.state(1), publisher.state(2)
    assert publisher.logprobs(None) == fingerprint(served.ask())
    first, second = publisher.publish(one), publisher.publish(two)
    for manifest, state in ((first, one), (second, two), (first, one)):
        served.promote(manifest.version)
        assert publisher.logprobs(state) == fingerprint(served.ask())
    assert publisher.logprobs(two) == fingerprint(served.ask(f"strata@{second.version}"))
    assert publisher.logprobs(None) == fingerprint(served.ask("strata@base"))


def test_what_vllm_counts_lies_beside_the_gateways_own_series(served: Served) -> None:
    def value(name: str) -> float | None:
        lines = served.http.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), None)

    ours = "strata_engine_generated_tokens_total"
    counted = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", ours)
    before = [value(name) or 0.0 for name in counted]
    tokens = served.ask().json()["usage"]
    served.wait(lambda: (value(counted[0]) or 0.0) > before[0])
    grown = [(value(name) or 0.0) - old for name, old in zip(counted, before, strict=True)]
    assert grown == [tokens["completion_tokens"], tokens["prompt_tokens"], tokens["completion_tokens"]]
    assert value("vllm:kv_cache_usage_perc") is not None
    assert value("strata_engine_steps_total") is None, "not counted is not none"


def test_a_version_that_does_not_reproduce_its_probe_is_never_served(served: Served) -> None:
    publisher = served.publisher
    state = publisher.state(3)
    ids, logprobs = publisher.greedy(state)
    wrong = Probe(
        question=QUESTION,
        image="probe.png",
        answer_token_ids=tuple(ids),
        logprobs=tuple(value - 1 for value in logprobs),
    )
    manifest = publisher.publish(state, probe=wrong)
    answer = served.ask(f"strata@{manifest.version}")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "probe_failed"


def test_a_killed_engine_is_told_and_comes_back_with_the_version(served: Served) -> None:
    state = served.publisher.state(4)
    manifest = served.publisher.publish(state)
    served.promote(manifest.version)
    (engine,) = served.engines()
    os.kill(engine, signal.SIGKILL)
    served.wait(lambda: served.ask().status_code == 503, 30)
    down = served.ask()
    assert int(down.headers["retry-after"]) > 0
    assert down.json()["error"]["type"] == "server_error"
    served.wait(lambda: served.ask().status_code == 200)
    assert served.publisher.logprobs(state) == fingerprint(served.ask())
    assert served.serves(manifest.version)


def test_logs_stay_json_and_no_engine_outlives_the_gateway(served: Served) -> None:
    lines = [line for line in served.log.read_text().splitlines() if not line.startswith(NO_LOGGING_YET)]
    assert any(json.loads(line)["message"] == "vLLM runs" for line in lines)
    (engine,) = served.engines()
    served.process.kill()
    served.process.wait(30)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{engine}/stat").exists() and " Z " not in Path(f"/proc/{engine}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
