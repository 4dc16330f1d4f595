"""Threads apart for teaching and for the queue; asyncio's own few stay with those who ask.

``asyncio.to_thread`` shares one small pool (six threads on two cores). Validations that take minutes, or
calls to a Redis that hangs, would take all of them, and no picture could be read meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from adapter_store.errors import DatasetsBusy

P = ParamSpec("P")
R = TypeVar("R")
Run = Callable[..., Awaitable[Any]]
"""Runs a blocking call in a thread: ``asyncio.to_thread``, or ``run`` of a pool."""


class Pool:
    """Run blocking calls in named threads; what finds none free waits for one."""

    def __init__(self, name: str, threads: int, most_waiting: int | None = None) -> None:
        """Create the threads when they are needed.

        Args:
            name: what the threads are called.
            threads: how many calls run at once.
            most_waiting: how many more may wait; None: any number.
        """
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = None if most_waiting is None else threads + most_waiting
        self._taken = 0
        self._lock = threading.Lock()

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what ``function`` returns; used as ``asyncio.to_thread``.

        Raises:
            DatasetsBusy: too many calls wait already.
        """
        with self._lock:
            self.require_room()
            self._taken += 1
        future = self._executor.submit(contextvars.copy_context().run, function, *args, **kwargs)
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def require_room(self) -> None:
        """Raise DatasetsBusy if a call would find too many waiting; a large body is better refused unread."""
        if self._most is not None and self._taken >= self._most:
            raise DatasetsBusy(f"{self._taken} data sets are checked or wait already; try again later")

    def _leave(self, _: Future[Any]) -> None:
        """Make room when a call has really ended: the thread goes on when who asked is gone."""
        with self._lock:
            self._taken -= 1


FILES = Pool("files", 4)
"""What is written and read while teaching material comes in: uploads, their records, JSON bodies."""
DATASETS = Pool("datasets", 4, most_waiting=32)
"""What may take minutes: validating and keeping data sets, each of which lies on disk while it waits."""
CORRECTIONS = Pool("corrections", 2)
"""Corrections that wait on disk: a lock that another gateway holds stalls nobody who sends something else."""
QUEUE = Pool("queue", 4)
"""Calls to Redis and the journal on behalf of requests."""
WATCH = Pool("watch-queue", 1)
"""The gateway's own look at Redis, which hanging requests must not delay."""
