"""Run the service for the demo: the same three processes as ``strata up``, in a home of their own."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from server.launch.ports import free_port
from server.launch.readiness import wait_until_ready
from server.launch.stack import Stack, StackOptions
from server.launch.supervisor import Event, LaunchFailed

_READY_TIMEOUT_SECONDS = 600.0
_STOP_TIMEOUT_SECONDS = 90.0
# What the user set for a service of their own must not reach into the demo; empty stands for the default.
_OWN = {"STRATA_STORE_URL": "", "STRATA_API_KEYS": "", "STRATA_MODEL_NAME": "", "STRATA_HOLDOUT_RATIO": "0.1"}


class Service:
    """Hold the running stack; its logs go to files of the home and not to the terminal.

    One thread runs the supervisor for the whole life of the service: the kernel ties the children to it.
    """

    def __init__(self, home: Path | None, port: int | None) -> None:
        self._temporary = home is None
        self.home = (
            Path(tempfile.mkdtemp(prefix="strata-demo-")) if home is None else home.expanduser().absolute()
        )
        self.options = StackOptions(
            self.home,
            port=free_port(preferred=8000) if port is None else port,
            metrics_port=free_port(preferred=9101),
            env=_OWN,
        )
        self._stop, self._hurry = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._logs: dict[str, TextIO] = {}
        self.events: deque[Event] = deque(maxlen=200)
        self._stack = Stack(self.options, on_line=self._write, on_event=self._note)
        self._thread = threading.Thread(target=self._run, name="supervisor")

    @property
    def url(self) -> str:
        """Return the address of the gateway."""
        return self.options.url

    def pids(self) -> dict[str, int]:
        """Return the process ids of what runs, by name."""
        return self._stack.pids()

    def peak_memory_bytes(self) -> dict[str, int]:
        """Return the largest resident memory of each running process so far, as far as it can be read."""
        found = {name: _peak_memory_bytes(pid) for name, pid in self.pids().items()}
        return {name: value for name, value in found.items() if value is not None}

    def __enter__(self) -> Self:
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop.set()
        try:
            self._thread.join(timeout=_STOP_TIMEOUT_SECONDS)
        except KeyboardInterrupt:
            self._hurry.set()
            self._thread.join(timeout=_STOP_TIMEOUT_SECONDS)
        for log in self._logs.values():
            log.close()
        if self._temporary:
            shutil.rmtree(self.home, ignore_errors=True)

    def wait_until_ready(self, on_wait: Callable[[float, str], None] | None = None) -> None:
        """Wait for the gateway; raise what stopped the service, or LaunchFailed after the timeout."""
        ready = wait_until_ready(
            self.url,
            timeout_seconds=_READY_TIMEOUT_SECONDS,
            give_up=lambda: not self._thread.is_alive(),
            on_wait=on_wait,
        )
        self.check()
        if not ready:
            raise LaunchFailed(f"the gateway was not ready after {_READY_TIMEOUT_SECONDS:.0f} s")

    def check(self) -> None:
        """Raise what stopped the service, if something did."""
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Wait until the service ends by itself; a KeyboardInterrupt passes through."""
        while self._thread.is_alive():
            self._thread.join(timeout=0.5)
        self.check()

    def _run(self) -> None:
        try:
            self._stack.run(self._stop, self._hurry)
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            self._failure = error

    def _write(self, program: str, line: str) -> None:
        if program not in self._logs:
            path = self.home / "logs" / f"{program}.log"
            self._logs[program] = path.open("a", encoding="utf-8", buffering=1)
        self._logs[program].write(line + "\n")

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self._write("strata", f"{event.program} {event.kind} {event.message}")


def _peak_memory_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
