"""Teach one task over HTTP and watch it being served, with the clock running."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from adapter_store.errors import StrataError
from server.cli.client import Client
from server.cli.teach import submit_file
from server.cli.watch import show_job
from server.demo.asking import Question

_SERVED_TIMEOUT_SECONDS = 60.0
_SWAP_SERIES = "strata_adapter_swap_seconds"


class TeachingFailed(StrataError):
    """Report a job that did not end in a served version."""

    code = "teaching_failed"


@dataclass(frozen=True, slots=True)
class Taught:
    """Record one finished lesson.

    Attributes:
        version: Version that is served now.
        served_seconds: From sending the data to the first answer by that version.
        swap_seconds: The gateway's own measure of the swap, None if it made none.
        phases: Seconds of each phase of the job.
        decision: ``expand`` or ``retrain``.
    """

    version: str
    served_seconds: float
    swap_seconds: float | None
    phases: dict[str, float]
    decision: str


def teach(
    client: Client, file: Path, task: str, probe: Question, model: str, console: Console | None
) -> Taught:
    """Submit a data set, show its way to a served version, and wait until that version answers.

    Args:
        client: Connection to the gateway.
        file: Data set of the task.
        task: Name of the task.
        probe: Question that is asked until the new version answers it.
        model: Model name to ask.
        console: Where to draw; None draws nothing.

    Raises:
        TeachingFailed: If the job failed, the gate kept the version back, or it was not served in time.
    """
    before = swap_seconds(client)
    began = time.monotonic()
    job = submit_file(client, file, task)
    job, _ = show_job(client, job["id"], f"learning {task}", console)
    version = _version_of(job)
    _await_version(client, probe, model, version)
    served = time.monotonic() - began
    after = swap_seconds(client)
    swapped = after[1] - before[1]
    return Taught(
        version=version,
        served_seconds=served,
        swap_seconds=(after[0] - before[0]) / swapped if swapped else None,
        phases={str(name): float(value) for name, value in (job.get("seconds") or {}).items()},
        decision=str(job.get("decision")),
    )


def _version_of(job: dict[str, Any]) -> str:
    if job["status"] != "succeeded":
        reason = (job.get("error") or {}).get("message") or "no reason was recorded"
        raise TeachingFailed(f"job {job['id']} {job['status']}: {reason}")
    gate = job.get("gate") or {}
    if not gate.get("passed", False):
        reasons = "; ".join(map(str, gate.get("reasons", []))) or "no reason was recorded"
        raise TeachingFailed(f"the gate held {job.get('result_version')} back: {reasons}")
    if job.get("outcome") == "not_served":
        raise TeachingFailed(f"{job['result_version']} passed the gate, but stable had moved meanwhile")
    return str(job["result_version"])


def _await_version(client: Client, probe: Question, model: str, version: str) -> None:
    deadline = time.monotonic() + _SERVED_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        body = client.post("/v1/chat/completions", json=probe.body(model))
        if version in str(body.get("system_fingerprint")):
            return
        time.sleep(0.1)
    raise TeachingFailed(f"{version} was published but did not answer within {_SERVED_TIMEOUT_SECONDS:.0f} s")


def swap_seconds(client: Client) -> tuple[float, float]:
    """Return the sum and the count of all swaps so far, as the gateway's metrics have them."""
    return parse_histogram(client.request("GET", "/metrics"), _SWAP_SERIES)


def parse_histogram(response: httpx.Response, name: str) -> tuple[float, float]:
    """Return sum and count of a histogram without labels in Prometheus' text format."""
    values = {f"{name}_sum": 0.0, f"{name}_count": 0.0}
    for line in response.text.splitlines():
        series, _, value = line.partition(" ")
        if series in values:
            values[series] = float(value)
    return values[f"{name}_sum"], values[f"{name}_count"]
