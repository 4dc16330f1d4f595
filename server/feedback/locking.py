"""A lock on a file between all threads and processes of one home; the kernel drops it with its holder."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from adapter_store.errors import UnavailableError
from server.pools import CORRECTIONS

_SHORT_SECONDS, _LONG_SECONDS = 0.005, 0.05


class LockTaken(UnavailableError):
    """Report that another gateway held a lock all the while."""

    code = "feedback_busy"
    retry_after_seconds = 2


class _FileLock:
    """One try to hold the lock of a file, which two tries never do at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._handle: int | None = None
        self._is_released = False

    def take(self) -> bool:
        """Take the lock if it is free; a try that was released meanwhile takes nothing."""
        with self._guard:
            if self._is_released:
                return False
            if self._handle is None:
                self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def release(self) -> None:
        """Let go of the lock, held or not."""
        with self._guard:
            self._is_released = True
            if self._handle is not None:
                fcntl.flock(self._handle, fcntl.LOCK_UN)  # also for a child that was forked with the handle
                os.close(self._handle)
                self._handle = None


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of a file, in a thread that may wait.

    Raises:
        LockTaken: it was not free within ``seconds``.
    """
    lock, deadline = _FileLock(path), time.monotonic() + seconds
    try:
        while not lock.take():
            _give_up_after(deadline)
            time.sleep(_SHORT_SECONDS)
        yield
    finally:
        lock.release()


@asynccontextmanager
async def locked_aside(path: Path, seconds: float) -> AsyncIterator[None]:
    """Hold the lock of a file while the event loop goes on; raises as ``locked``."""
    lock, deadline = _FileLock(path), time.monotonic() + seconds
    try:
        while not await CORRECTIONS.run(lock.take):
            _give_up_after(deadline)
            await asyncio.sleep(_LONG_SECONDS)
        yield
    finally:
        lock.release()


def _give_up_after(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise LockTaken("another gateway is busy with the corrections; try again in a moment")
