"""Hold one child process: its output line by line, its end, and how it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.launch import bound

_TAIL_LINES = 20
LineSink = Callable[[str, str], None]
"""Called with (program name, one line of its output without the line end)."""


@dataclass(frozen=True, slots=True)
class Program:
    """Describe a process that the supervisor keeps running.

    Attributes:
        name: Shown in front of each of its lines.
        command: Program and arguments.
        env: Variables added to the environment.
        is_ready: Tells whether the next program may start; None lets it start at once.
        ready_timeout_seconds: How long `is_ready` may take.
        stop_rank: Programs of a lower rank are stopped first, those of one rank together.
        grace_seconds: How long it may take to end after SIGTERM before it is killed.
        fatal_status: Exit statuses that a restart cannot cure, such as a usage error.
        vital: Whether the others are stopped too once it is given up.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    is_ready: Callable[[], bool] | None = None
    ready_timeout_seconds: float = 20.0
    stop_rank: int = 0
    grace_seconds: float = 30.0
    fatal_status: tuple[int, ...] = (2,)
    vital: bool = True


class Child:
    """Run a program once, in a session of its own, bound to the life of this process.

    The kernel ties a child to the *thread* that started it: construct children only in a thread that lives as
    long as they do.
    """

    def __init__(self, program: Program, sink: LineSink) -> None:
        self.program = program
        self.started_at = time.monotonic()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        command = [sys.executable, str(Path(bound.__file__)), str(os.getpid()), str(int(signal.SIGKILL))]
        self._process = subprocess.Popen(
            [*command, *program.command],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **program.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A Ctrl-C on the terminal must reach the supervisor alone, which stops its children in order.
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(
            target=self._read, args=(sink,), daemon=True, name=f"log-{program.name}"
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def tail(self) -> list[str]:
        """Return the last lines that the program printed."""
        return list(self._tail)

    def _read(self, sink: LineSink) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        with stream:
            for line in stream:
                text = line.rstrip("\r\n")
                self._tail.append(text)
                sink(self.program.name, text)

    def status(self) -> int | None:
        """Return the exit status, negative for a signal, or None while it runs."""
        status = self._process.poll()
        if status is not None:
            self._reader.join(timeout=2.0)
        return status

    def terminate(self) -> None:
        """Ask the program to end (SIGTERM)."""
        self._process.terminate()

    def kill(self) -> None:
        """End the program and everything it started in its session."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self._process.kill()

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the end; return the exit status or None when it did not end in time."""
        try:
            self._process.wait(timeout=max(timeout_seconds, 0.0))
        except subprocess.TimeoutExpired:
            return None
        return self.status()


def describe_status(status: int) -> str:
    """Return an exit status in words, for example ``killed by SIGKILL``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
