"""Run `strata up` with a tiny real base and use it as a user does: command line, examples, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from server.launch.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STRATA_")}
    return {**kept, "OMP_NUM_THREADS": "1", "STRATA_CACHE": os.environ.get("STRATA_CACHE", ""), **more}


class Up:
    """Hold a running `strata up --json` and what it reported."""

    def __init__(self, home: Path, base: Path) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        flags = {
            "--home": home,
            "--base": base,
            "--port": self.port,
            "--metrics-port": free_port(),
            "--retention-questions": 0,
            "--nice": 0,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        command = [sys.executable, "-m", "server.cli.main", "up", "--json", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment()
        )
        self.events: list[dict] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.events.append(
                    json.loads(line) if line.startswith("{") else {"event": "text", "line": line}
                )

    def wait_for(self, kind: str, program: str, seconds: float = START_SECONDS) -> dict:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self.events:
                if event["event"] == kind and event.get("program") == program:
                    return event
            assert self.process.poll() is None, self.events[-20:]
            time.sleep(0.1)
        raise AssertionError(f"no {kind} of {program} within {seconds} s: {self.events[-20:]}")

    def pids(self) -> dict[str, int]:
        started = [event for event in self.events if event["event"] == "started"]
        return {event["program"]: int(event["message"].split()[1].rstrip(",")) for event in started}

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        status = self.process.wait(90)
        self._reader.join(10)
        return status


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("home"), tiny_base)
    try:
        running.wait_for("ready", "strata")
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


def strata(up: Up, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli.main", *words, "--url", up.url],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures with one subfolder per answer."""
    folder = tmp_path_factory.mktemp("birds")
    for answer, base in (("robin", (200, 40, 20)), ("jay", (20, 40, 200))):
        (folder / answer).mkdir()
        for number in range(10):
            color = (base[0], base[1] + 5 * number, base[2])
            Image.new("RGB", (28, 28), color).save(folder / answer / f"{number}.png")
    return folder


def test_three_processes_run_and_the_gateway_answers(up: Up, birds: Path):
    assert set(up.pids()) == {"redis", "gateway", "worker"}
    assert all(alive(pid) for pid in up.pids().values())
    done = strata(up, "chat", "--json", "--max-tokens", "4", "--image", str(birds / "jay" / "0.png"), "What?")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "base" in str(found["version"])
    assert found["usage"]["completion_tokens"] <= 4


def test_the_examples_run_and_teaching_makes_a_version_that_can_be_served(up: Up, birds: Path):
    settings = environment(STRATA_URL=up.url)
    taught = subprocess.run(
        [sys.executable, "examples/teach.py", str(birds), "birds", "Which bird is it?"],
        cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert taught.returncode == 0, taught.stderr
    assert "succeeded: version v1" in taught.stdout
    assert strata(up, "promote", "v1").returncode == 0
    asked = subprocess.run(
        [sys.executable, "examples/ask.py", str(birds / "jay" / "0.png"), "Which bird is it?", "strata@v1"],
        cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    curl = subprocess.run(
        ["examples/curl.sh", str(birds / "jay" / "0.png"), "Which bird is it?"],
        cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert curl.returncode == 0, curl.stderr
    answers = [json.loads(line) for line in curl.stdout.splitlines() if line.strip()]
    assert "answer" in answers[0]


def test_the_operating_verbs_work_on_what_was_taught(up: Up):
    listed = json.loads(strata(up, "versions", "--json").stdout)
    assert [version["version"] for version in listed["data"]] == ["v1"]
    assert "v1" in strata(up, "versions").stdout
    matrix = json.loads(strata(up, "matrix", "--json").stdout)
    assert matrix["tasks"] == ["birds"]
    assert "birds" in strata(up, "matrix").stdout
    assert strata(up, "matrix", "--csv").stdout.count("\n") >= 2
    jobs = json.loads(strata(up, "jobs", "--json").stdout)
    assert [job["status"] for job in jobs] == ["succeeded"]
    shown = strata(up, "jobs", jobs[0]["id"])
    assert shown.returncode == 0
    assert "train" in shown.stdout


def test_a_data_set_with_faults_is_refused_with_all_of_them(up: Up, tmp_path: Path):
    file = tmp_path / "bad.json"
    rows = []
    for number, answer in enumerate(("", "a jay")):
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(number), "image": "none.png", "conversations": turns})
    file.write_text(json.dumps(rows))
    done = strata(up, "submit", str(file), "--task", "broken")
    assert done.returncode == 2
    assert "the answer is empty" in done.stderr
    assert "none.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_version_is_a_sentence(up: Up):
    done = strata(up, "promote", "v77")
    assert done.returncode == 2
    assert "v77" in done.stderr


def test_a_crashed_gateway_comes_back_and_still_serves_what_was_taught(up: Up):
    before = up.pids()["gateway"]
    os.kill(before, signal.SIGKILL)
    up.wait_for("restarting", "gateway", 30)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(f"{up.url}/ready", timeout=5).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert up.pids()["gateway"] != before
    found = json.loads(strata(up, "versions", "--json").stdout)
    assert {record["alias"]: record["version"] for record in found["aliases"]}["stable"] == "v1"


def test_a_second_one_on_the_same_port_is_refused_in_words(up: Up, tmp_path: Path, tiny_base: Path):
    words = ["up", "--home", str(tmp_path), "--base", str(tiny_base), "--port", str(up.port)]
    done = subprocess.run(
        [sys.executable, "-m", "server.cli.main", *words],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"port {up.port} on 127.0.0.1 is taken" in done.stderr


def test_sigterm_shuts_down_in_order_and_leaves_nothing(up: Up):
    pids = up.pids()
    assert up.end(signal.SIGTERM) == 0
    order = [event["program"] for event in up.events if event["event"] in {"stopped", "killed"}]
    assert order[-1] == "redis"
    assert set(order) == {"gateway", "worker", "redis"}
    assert not any(alive(pid) for pid in pids.values())


def test_kill_9_of_the_parent_leaves_no_orphan_and_nothing_is_lost(up: Up, tiny_base: Path):
    again = Up(up.home, tiny_base)
    try:
        again.wait_for("ready", "strata")
        found = json.loads(strata(again, "versions", "--json").stdout)
        assert [version["version"] for version in found["data"]] == ["v1"]
        pids = again.pids()
    finally:
        again.process.kill()
        again.process.wait(10)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids.values()):
        assert time.monotonic() < deadline, {name: pid for name, pid in pids.items() if alive(pid)}
        time.sleep(0.1)
