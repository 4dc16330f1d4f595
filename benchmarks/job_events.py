"""Time the list of a job's 1,000 events over HTTP: what a page or a client that watches learning waits for.

    python -m benchmarks.job_events [--repeats 50] [--json OUT]

The gateway, its Redis and the requests are real; no model is loaded, since none is needed to list events.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import uvicorn

from benchmarks.program import NotMeasured, program_parser, run_program, write_figures
from server.app import create_app
from server.connections import GuardedConnection
from server.gateway import Gateway
from server.settings import GatewaySettings

EVENTS = 1000
GOAL_SECONDS = 0.05
EXAMPLES = {"examples": [{"question": "Which digit is it?", "answer": "seven"}]}


@contextmanager
def running_gateway(home: Path) -> Iterator[tuple[str, Gateway]]:
    """Run a gateway without a base: everything but answering works."""
    settings = GatewaySettings(home=home, base=str(home / "no-base"))
    app = create_app(settings)
    config = uvicorn.Config(
        app, loop="asyncio", http=GuardedConnection, port=0, log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app.state.gateway
    finally:
        server.should_exit = True
        thread.join()


def job_with_events(client: httpx.Client, gateway: Gateway) -> str:
    """Submit a job, let it tell of a thousand steps as a worker does, and return its id."""
    deadline = time.monotonic() + 60
    while (answer := client.post("/v1/tasks/digits/batches", json=EXAMPLES)).status_code == 503:
        if time.monotonic() > deadline:
            raise NotMeasured(f"the job was not taken: {answer.text}")
        time.sleep(0.1)
    answer.raise_for_status()
    claim = gateway.link.queue().claim("benchmark")
    assert claim is not None
    for step in range(1, EVENTS + 1):
        data = {
            "step": step,
            "total_steps": EVENTS,
            "loss": 1 / step,
            "eta_seconds": 12.5,
            "samples_per_second": 60.0,
        }
        claim.event(f"step {step}/{EVENTS}: loss {1 / step:.4f}", type="metrics", data=data)
    return claim.job.id


def timed(client: httpx.Client, path: str, repeats: int) -> list[float]:
    """Return the seconds of each request; the first, which warms connections, is left out."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        answer = client.get(path, params={"limit": EVENTS})
        seconds.append(time.perf_counter() - began)
        answer.raise_for_status()
        assert len(answer.json()["data"]) == EVENTS
    return sorted(seconds[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the median has to reach the goal."""
    parser = program_parser("benchmarks.job_events", str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50, help="requests (default %(default)s)")
    given = parser.parse_args(argv)
    return run_program(lambda folder: _report(given, folder))


def _report(given: argparse.Namespace, folder: Path) -> bool:
    with (
        running_gateway(folder) as (url, gateway),
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        job = job_with_events(client, gateway)
        began = time.process_time()
        seconds = timed(client, f"/v1/fine_tuning/jobs/{job}/events", given.repeats)
        computed = (time.process_time() - began) / (given.repeats + 1)
    worst = seconds[min(len(seconds) - 1, round(0.95 * len(seconds)))]
    print(f"{EVENTS} events: median {1000 * median(seconds):.1f} ms, p95 {1000 * worst:.1f} ms", end="")
    print(f" of {len(seconds)} requests (goal {1000 * GOAL_SECONDS:.0f} ms)")
    print(f"computing time of server and client together: {1000 * computed:.1f} ms a request")
    write_figures(given.json, {"settings": vars(given), "seconds": seconds, "computed_seconds": computed})
    return median(seconds) < GOAL_SECONDS


if __name__ == "__main__":
    sys.exit(main())
