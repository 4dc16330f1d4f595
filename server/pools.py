"""Threads apart for teaching and for the queue; asyncio's own few stay with those who ask.

``asyncio.to_thread`` shares one small pool (six threads on two cores). Validations that take minutes, or
calls to a Redis that hangs, would take all of them, and no picture could be read meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Run = Callable[..., Awaitable[Any]]
"""Runs a blocking call in a thread: ``asyncio.to_thread``, or ``run`` of a pool."""


class Pool:
    """Run blocking calls in named threads; what finds none free waits for one."""

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what ``function`` returns; used as ``asyncio.to_thread``."""
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


FILES = Pool("files", 4)
"""What is written and read while teaching material comes in: uploads, their records, JSON bodies."""
DATASETS = Pool("datasets", 4)
"""What may take minutes: validating and keeping data sets."""
QUEUE = Pool("queue", 4)
"""Calls to Redis and the journal on behalf of requests."""
WATCH = Pool("watch-queue", 1)
"""The gateway's own look at Redis, which hanging requests must not delay."""
