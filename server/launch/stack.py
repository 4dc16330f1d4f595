"""Run the whole service on one machine: Redis, gateway, trainer worker, and the watch over them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from adapter_store.errors import ConflictError, QueueUnavailable
from adapter_store.redis_server import RedisServer
from server.launch.child import LineSink, Program
from server.launch.ports import require_free_port
from server.launch.supervisor import Event, Supervisor

GATEWAY = "gateway"
WORKER = "worker"
REDIS = "redis"
_LOCK_WAIT_SECONDS = 3.0
_REDIS_LOOK_SECONDS = 1.0
# Two processes share the cores: waiting threads must sleep, not spin. The worker lowers its own priority.
_SHARE_CORES = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
# Bars of a child cannot be redrawn between the lines of the others.
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True)
class StackOptions:
    """Say where the service lives.

    Attributes:
        home: Folder of data sets, jobs, versions, and of the embedded Redis.
        host: Address the gateway listens on.
        port: Port of the gateway.
        metrics_port: Port of the worker's metrics.
        redis_url: External Redis; empty starts the embedded one.
        env: Further variables for both programs.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int = 9101
    redis_url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def require_free_ports(self) -> None:
        """Raise InputError if a port that the service needs is taken."""
        require_free_port(self.host, self.port, "--port")
        require_free_port("127.0.0.1", self.metrics_port, "--metrics-port")

    @property
    def url(self) -> str:
        """Return the address that a client on this machine uses."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"


class Stack:
    """Run Redis, gateway and worker until told to stop; Redis ends last."""

    def __init__(
        self, options: StackOptions, *, on_line: LineSink, on_event: Callable[[Event], None]
    ) -> None:
        self._options = options
        self._on_line = on_line
        self._on_event = on_event
        self._redis: RedisServer | None = None
        self._look_at_redis = 0.0
        self._supervisor: Supervisor | None = None

    def run(self, stop: threading.Event, hurry: threading.Event | None = None) -> None:
        """Start everything, keep it running until `stop` is set, then shut down in order.

        Call it in a thread that lives as long as the service; the kernel ends the children with that thread.

        Raises:
            ConflictError: If another supervisor runs on the same home.
            InputError: If a port is taken.
            LaunchFailed: If a program cannot be kept running.
            QueueUnavailable: If Redis does not start.
        """
        options = self._options
        options.require_free_ports()
        lock = self._lock_home()
        try:
            url = options.redis_url or self._start_redis()
            self._supervisor = Supervisor(
                programs(options, url),
                on_line=self._on_line,
                on_event=self._on_event,
                on_tick=self._watch_redis,
            )
            self._supervisor.run(stop, hurry)
        finally:
            self._stop_redis()
            lock.release()

    def pids(self) -> dict[str, int]:
        """Return the process ids of what runs, by name."""
        found = self._supervisor.pids() if self._supervisor else {}
        return {**found, REDIS: self._redis.pid} if self._redis else found

    def _lock_home(self) -> FileLock:
        folder = self._options.home / "run"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "up.lock")
        try:
            lock.acquire(timeout=_LOCK_WAIT_SECONDS)
        except Timeout:
            raise ConflictError(
                f"`strata up` is running already on {self._options.home}; stop it, "
                "or choose another folder with --home"
            ) from None
        return lock

    def _start_redis(self) -> str:
        began = time.monotonic()
        self._redis = RedisServer.start(self._options.home)
        kind = "started" if self._redis.owned else "ready"
        took = f"pid {self._redis.pid}, {time.monotonic() - began:.1f} s"
        self._on_event(Event(kind, REDIS, took if self._redis.owned else f"found running, {took}"))
        return self._redis.url

    def _watch_redis(self) -> None:
        """Look after Redis now and then; the gateway keeps answering while it is away."""
        now = time.monotonic()
        if self._redis is None or now < self._look_at_redis:
            return
        self._look_at_redis = now + _REDIS_LOOK_SECONDS
        if not self._redis.ended():
            return
        self._on_event(Event("restarting", REDIS, "it has ended; starting it again"))
        try:
            self._start_redis()
        except QueueUnavailable as error:
            self._on_event(Event("unready", REDIS, error.message))

    def _stop_redis(self) -> None:
        if self._redis is not None and self._redis.owned:
            self._on_event(Event("stopping", REDIS, ""))
            self._redis.stop()
            self._on_event(Event("stopped", REDIS, ""))
        self._redis = None


def programs(options: StackOptions, redis_url: str) -> list[Program]:
    """Return gateway and worker as the supervisor runs them."""
    shared = {
        **_SHARE_CORES,
        **_QUIET,
        **options.env,
        "STRATA_HOME": str(options.home),
        "STRATA_REDIS_URL": redis_url,
    }
    gateway = {
        "STRATA_THREADS": os.environ.get("STRATA_THREADS") or str(_half_of_the_cores()),
        **shared,
        "STRATA_HOST": options.host,
        "STRATA_PORT": str(options.port),
    }
    worker = {**shared, "STRATA_METRICS_PORT": str(options.metrics_port)}
    return [
        Program(GATEWAY, (sys.executable, "-m", "server"), gateway),
        Program(WORKER, (sys.executable, "-m", "trainer_worker"), worker, vital=False),
    ]


def _half_of_the_cores() -> int:
    """Return how many threads the gateway computes with; the worker, which steps back for it, uses all cores.

    Small matrix products on more threads than cores are several times slower than on one.
    """
    return max(1, len(os.sched_getaffinity(0)) // 2)
