"""How quiet the machine was: cores that programs other than the measured ones used meanwhile (Linux)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class OtherLoad:
    """Compare what the machine did since ``begin`` with what the named processes did.

    Args:
        pids: asked for the processes that are measured, this one among them.
    """

    def __init__(self, pids: Callable[[], Iterable[int | None]]) -> None:
        self._pids = pids
        self.begin()

    def begin(self) -> None:
        """Start to count anew."""
        self._began = time.monotonic()
        self._machine, self._own = self._read()

    def cores(self) -> float:
        """Return how many cores others used on average since ``begin``; NaN where that cannot be read."""
        machine, own = self._read()
        seconds = (machine - self._machine) - (own - self._own)
        used = seconds / max(1e-9, time.monotonic() - self._began)
        return used if math.isnan(used) else max(0.0, used)  # the kernel counts in hundredths of a second

    def _read(self) -> tuple[float, float]:
        try:
            machine = busy_seconds(Path("/proc/stat").read_text(encoding="ascii"))
        except OSError:
            return math.nan, math.nan
        return machine, seconds_of(self._pids())


def seconds_of(pids: Iterable[int | None]) -> float:
    """Return the processor seconds that programs and all they started have used; NaN if it cannot be read.

    None stands for a program that has ended.
    """
    try:
        members = {member for pid in pids if pid is not None for member in family(pid)}
        return sum(process_seconds(Path(f"/proc/{pid}/stat").read_text()) for pid in members)
    except OSError:
        return math.nan


def family(pid: int) -> set[int]:
    """Return a process and all that it started, engine processes among them."""
    children = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return {pid}.union(*(family(int(child)) for text in children for child in text.split()))


def busy_seconds(stat: str) -> float:
    """Return the seconds that all cores together were busy or stolen, from the text of ``/proc/stat``."""
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(n) for n in stat.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def process_seconds(stat: str) -> float:
    """Return the processor seconds of a process, from the text of its ``/proc/<pid>/stat``."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
