"""A gateway as it runs in production: ``python -m server`` in a home of its own, its log lines kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from adapter_store.errors import UnavailableError
from server.launch import bound
from server.launch.ports import free_port
from server.launch.readiness import wait_until_ready

_START_SECONDS = 600.0
_STOP_SECONDS = 60.0
# As under `strata up`: programs that share the cores let waiting threads sleep.
SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def gateway_threads() -> int:
    """Return how many threads ``strata up`` lets the gateway compute with on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def program_command(module: str, flags: Mapping[str, Any]) -> list[str]:
    """Return the command that runs a module with flags and ends, whatever happens, with this process."""
    command = [sys.executable, str(Path(bound.__file__)), str(os.getpid()), str(int(signal.SIGKILL))]
    command += [sys.executable, "-m", module]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return command


def clean_environment() -> dict[str, str]:
    """Return this process' environment without settings of a service that the user runs; the cache stays."""
    cache = {"STRATA_CACHE": os.environ["STRATA_CACHE"]} if "STRATA_CACHE" in os.environ else {}
    return {name: value for name, value in os.environ.items() if not name.startswith("STRATA_")} | cache


class GatewayProcess:
    """Run one gateway; use as a context manager.

    Args:
        home: folder of versions and queue.
        flags: settings of the gateway by name, as on its command line.
    """

    def __init__(self, home: Path, flags: dict[str, Any]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[dict[str, Any]] = []
        words = {"home": home, "port": port, **flags}
        self._command = program_command("server", words)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env={**clean_environment(), **SHARED_CORES}
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        ready = wait_until_ready(self.url, timeout_seconds=_START_SECONDS, give_up=lambda: self.pid is None)
        if not ready:
            self.__exit__(None, None, None)
            said = "; ".join(str(line.get("reason") or line["message"]) for line in self.lines[-3:])
            raise UnavailableError(f"the gateway did not come up: {said or 'it said nothing'}")
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int | None:
        """Return the process id, None once it has ended."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def said(self, message: str, **fields: Any) -> dict[str, Any] | None:
        """Return the newest log line with a message and fields, with ``at`` in seconds since 1970."""
        for line in reversed(list(self.lines)):
            if line["message"] == message and all(line.get(name) == value for name, value in fields.items()):
                return {**line, "at": _seconds(line["time"])}
        return None

    def wait_said(self, message: str, seconds: float = 5.0, **fields: Any) -> dict[str, Any] | None:
        """Return a log line as ``said`` does, waiting for it."""
        deadline = time.monotonic() + seconds
        while (line := self.said(message, **fields)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return line

    def sample(self, name: str) -> float:
        """Return one sample without labels of ``/metrics``, 0 if it is not there."""
        text = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text
        return sample_of(text, name)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    self.lines.append({"message": line.strip(), "time": "1970-01-01T00:00:00.000Z"})


def sample_of(exposition: str, name: str) -> float:
    """Return the value of a series without labels in a text exposition, 0 if it is not there."""
    for line in exposition.splitlines():
        series, _, value = line.rpartition(" ")
        if series == name:
            return float(value)
    return 0.0


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
