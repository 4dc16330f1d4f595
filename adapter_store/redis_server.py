"""A real redis-server of our own: private socket, append-only file, gone when its parent is gone."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self


class RedisServer:
    """A running redis-server; ``url`` is what ``connect`` takes."""

    url: str
    pid: int
    owned: bool

    @classmethod
    def start(cls, home: Path, *, executable: Path | None = None, timeout_seconds: float = 10) -> Self:
        """Start the Redis of ``home`` or find the running one; raise QueueUnavailable naming the log."""
        raise NotImplementedError

    def is_running(self) -> bool:
        raise NotImplementedError

    def stop(self, timeout_seconds: float = 10) -> None:
        """Shut down cleanly; nothing happens if another process owns it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
