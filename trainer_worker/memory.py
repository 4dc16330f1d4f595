"""Tell how much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def available_bytes(root: Path = ROOT) -> int | None:
    """Return what machine and control group (version 2) leave free; None where the system does not tell."""
    free = [room for room in (_of_machine(root), _of_group(root / "sys/fs/cgroup")) if room is not None]
    return min(free, default=None)


def _of_machine(root: Path) -> int | None:
    return _named(root / "proc/meminfo", "MemAvailable:", unit=1024)


def _of_group(group: Path) -> int | None:
    limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return None
    cache = _named(group / "memory.stat", "inactive_file") or 0
    return max(limit - used + cache, 0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _named(path: Path, name: str, unit: int = 1) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines)
    return next((int(words[1]) * unit for words in found if words[:1] == [name]), None)
