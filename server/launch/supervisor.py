"""Keep a few programs running: start in order, restart what crashes, stop in order.

Everything happens in the thread that calls `Supervisor.run`: the kernel binds children to that thread.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from adapter_store.errors import StrataError
from server.launch.child import Child, LineSink, Program, describe_status

_POLL_SECONDS = 0.1
_STEADY_SECONDS = 60.0
"""A program that ran this long counts as healthy: its next crash starts the backoff anew."""


class LaunchFailed(StrataError):
    """Report that a program could not be kept running."""

    code = "launch_failed"


@dataclass(frozen=True, slots=True)
class Event:
    """Tell what happened to a program: started, ready, restarting, given up, stopping, killed, stopped."""

    kind: str
    program: str
    message: str


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Say how crashes are answered.

    Attributes:
        first_delay_seconds: Wait before the first restart; doubled for each crash in a row.
        longest_delay_seconds: Upper bound of the wait.
        give_up_after: Crashes in a row after which a program is given up, and with a vital one all others.
    """

    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 30.0
    give_up_after: int = 6

    def delay_seconds(self, crashes: int) -> float:
        """Return the wait before the restart that follows the given number of crashes in a row."""
        return min(self.first_delay_seconds * 2.0 ** (crashes - 1), self.longest_delay_seconds)


class Supervisor:
    """Run programs until told to stop or until one cannot be kept alive."""

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        on_line: LineSink,
        on_event: Callable[[Event], None],
        on_tick: Callable[[], None] | None = None,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._programs = list(programs)
        self._on_line = on_line
        self._on_event = on_event
        self._on_tick = on_tick
        self._policy = policy or RestartPolicy()
        self._children: dict[str, Child] = {}
        self._crashes: dict[str, int] = {}
        self._restart_at: dict[str, float] = {}
        self._given_up: set[str] = set()

    def run(self, stop: threading.Event, hurry: threading.Event | None = None) -> None:
        """Start all programs and watch them until `stop` is set; on the way out stop them in order.

        Args:
            stop: Ends the run when set.
            hurry: When set during the stop, whatever still runs is killed at once.

        Raises:
            LaunchFailed: If a program was not ready, refused its settings, or (a vital one) crashed often.
        """
        try:
            self._start_all(stop)
            while not stop.wait(_POLL_SECONDS):
                self._watch()
        finally:
            self._stop_all(hurry or threading.Event())

    def pids(self) -> dict[str, int]:
        """Return the process ids of the running programs by name."""
        return {name: child.pid for name, child in self._children.items()}

    def _start_all(self, stop: threading.Event) -> None:
        for program in self._programs:
            if stop.is_set():
                return
            self._start(program)
            self._await_ready(program, stop)

    def _start(self, program: Program) -> None:
        child = Child(program, self._on_line)
        self._children[program.name] = child
        self._on_event(Event("started", program.name, f"pid {child.pid}"))

    def _await_ready(self, program: Program, stop: threading.Event) -> None:
        if program.is_ready is None:
            return
        child = self._children[program.name]
        deadline = time.monotonic() + program.ready_timeout_seconds
        while not program.is_ready():
            status = child.status()
            if status is not None:
                raise _failure(child, f"ended while starting ({describe_status(status)})")
            if time.monotonic() > deadline:
                raise _failure(child, f"was not ready after {program.ready_timeout_seconds:.0f} s")
            if stop.wait(_POLL_SECONDS):
                return
        self._on_event(Event("ready", program.name, f"after {time.monotonic() - child.started_at:.1f} s"))

    def _watch(self) -> None:
        if self._on_tick is not None:
            self._on_tick()
        now = time.monotonic()
        for program in self._programs:
            name = program.name
            if name in self._restart_at:
                if now >= self._restart_at[name]:
                    del self._restart_at[name]
                    self._start(program)
                continue
            if name in self._given_up:
                continue
            child = self._children[name]
            status = child.status()
            if status is not None:
                self._crashed(child, status)

    def _crashed(self, child: Child, status: int) -> None:
        program = child.program
        if status in program.fatal_status:
            raise _failure(child, f"refused to run ({describe_status(status)})")
        steady = time.monotonic() - child.started_at >= _STEADY_SECONDS
        crashes = 1 if steady else self._crashes.get(program.name, 0) + 1
        self._crashes[program.name] = crashes
        if crashes >= self._policy.give_up_after:
            failure = _failure(child, f"ended {crashes} times in a row ({describe_status(status)})")
            if program.vital:
                raise failure
            self._given_up.add(program.name)
            self._on_event(Event("given up", program.name, f"{failure.message}; the others go on without it"))
            return
        delay = self._policy.delay_seconds(crashes)
        self._restart_at[program.name] = time.monotonic() + delay
        message = f"{describe_status(status)}; starting it again in {delay:.0f} s"
        self._on_event(Event("restarting", program.name, message))

    def _stop_all(self, hurry: threading.Event) -> None:
        running = [p for p in self._programs if p.name in self._children]
        for _, group in groupby(sorted(running, key=_rank), key=_rank):
            children = [self._children[p.name] for p in group]
            alive = [child for child in children if child.status() is None]
            for child in alive:
                self._on_event(
                    Event("stopping", child.program.name, f"up to {child.program.grace_seconds:.0f} s")
                )
                child.terminate()
            for child in alive:
                self._finish(child, hurry)
        self._children.clear()

    def _finish(self, child: Child, hurry: threading.Event) -> None:
        deadline = time.monotonic() + child.program.grace_seconds
        while child.wait(_POLL_SECONDS) is None:
            if hurry.is_set() or time.monotonic() > deadline:
                child.kill()
                child.wait(5.0)
                self._on_event(Event("killed", child.program.name, "it did not end in time"))
                return
        status = child.status() or 0
        words = "as asked" if status in {0, -signal.SIGTERM} else describe_status(status)
        self._on_event(Event("stopped", child.program.name, words))


def _rank(program: Program) -> int:
    return program.stop_rank


def _failure(child: Child, what: str) -> LaunchFailed:
    tail = "\n".join(f"  {line}" for line in child.tail[-8:])
    said = f"; it said last:\n{tail}" if tail else " and said nothing"
    return LaunchFailed(f"{child.program.name} {what}{said}")
