"""A real trainer worker that can be held for a moment, and the job that it learns."""

from __future__ import annotations

import base64
import io
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from adapter_store.errors import StrataError
from benchmarks.live.process import SHARED_CORES, clean_environment, program_command
from server.launch.ports import free_port

_STOP_SECONDS = 60.0
_LEASE_SECONDS = 3600
"""A worker that is held cannot renew its lease."""


class LearningFailed(StrataError):
    """Report that the job beside which serving is measured did not learn."""

    code = "learning_failed"


class WorkerProcess:
    """Run ``python -m trainer_worker`` as ``strata up`` does; use as a context manager.

    Args:
        home: the gateway's home.
        flags: settings of the worker by name.
    """

    def __init__(self, home: Path, flags: dict[str, Any]) -> None:
        words = {"home": home, "metrics_port": free_port(), "lease_seconds": _LEASE_SECONDS, **flags}
        self._log = home / "worker.log"
        self._command = program_command("trainer_worker", words)

    def __enter__(self) -> Self:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stderr=log, env={**clean_environment(), **SHARED_CORES}
            )
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int | None:
        """Return the process id, None once it has ended."""
        return self._process.pid if self._process.poll() is None else None

    def hold(self) -> None:
        """Stop the process where it is: it uses no core until ``resume``."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on."""
        self._signal(signal.SIGCONT)

    def check(self) -> None:
        """Raise LearningFailed if the process has ended."""
        if self._process.poll() is not None:
            last = self._log.read_text(encoding="utf-8", errors="replace").strip()[-300:]
            raise LearningFailed(f"the worker ended: {last}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)


class Lesson:
    """One job that learns until it is canceled.

    Args:
        url: address of the gateway.
        worker: checked while waiting.
    """

    def __init__(self, url: str, worker: WorkerProcess) -> None:
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._worker = worker
        self._job = ""

    def begin(self, pictures: int, batch_size: int, timeout_seconds: float = 900.0) -> None:
        """Send drawn scenes with their questions, and wait for the first training steps.

        Raises:
            LearningFailed: the job ended, or did not begin to train in time.
        """
        body = {
            "examples": scene_examples(pictures),
            "hyperparameters": {"epochs": 5000, "patience": 0, "batch_size": batch_size},
        }
        answer = self._http.post("/v1/tasks/scenes/batches", json=body)
        if answer.status_code != 202:
            raise LearningFailed(f"the batch was refused: {answer.text[:300]}")
        self._job = answer.json()["id"]
        deadline = time.monotonic() + timeout_seconds
        while len(self.steps()) < 2:
            self._worker.check()
            job = self._http.get(f"/v1/jobs/{self._job}").json()
            if job["status"] not in ("queued", "running", "validating_files") or time.monotonic() > deadline:
                raise LearningFailed(f"the job is {job['status']} and has not begun to train")
            time.sleep(0.5)

    def steps(self) -> list[tuple[float, int]]:
        """Return (seconds since 1970, training step) of every report so far."""
        found: list[tuple[float, int]] = []
        after = ""
        more = True
        while more:
            query = {"limit": 100, **({"after": after} if after else {})}
            page = self._http.get(f"/v1/jobs/{self._job}/events", params=query).json()
            for event in page["data"]:
                after = event["id"]
                if event["type"] == "metrics":
                    found.append((int(after.partition("-")[0]) / 1000, int(event["data"]["step"])))
            more = bool(page["has_more"])
        return found

    def end(self) -> None:
        """Cancel the job."""
        self._http.post(f"/v1/jobs/{self._job}/cancel")
        self._http.close()


def scene_examples(pictures: int) -> list[dict[str, str]]:
    """Return drawn scenes with one short question each, as the API takes them."""
    from trainer_worker.pretrain.scenes import scene_picture

    found: list[dict[str, str]] = []
    seed = 0
    while len(found) < pictures:
        picture = scene_picture(random.Random(f"beside-{seed}"), wanted=4)
        seed += 1
        short = [asked for asked in picture.questions if len(asked.answer.split()) <= 2]
        if not short:
            continue
        stream = io.BytesIO()
        picture.image.save(stream, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
        found.append({"image": url, "question": short[0].text, "answer": short[0].answer})
    return found


def steps_per_second(steps: list[tuple[float, int]], began: float, ended: float) -> float:
    """Return the training speed between the first and the last report within a span; NaN for fewer than two.

    Args:
        steps: (seconds, step), ascending.
        began: start of the span.
        ended: end of the span.
    """
    within = [(at, step) for at, step in steps if began <= at <= ended]
    if len(within) < 2 or within[-1][0] == within[0][0]:
        return float("nan")
    return (within[-1][1] - within[0][1]) / (within[-1][0] - within[0][0])
