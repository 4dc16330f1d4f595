"""Carry chunks from the engine's thread to the callers' event loops."""

from __future__ import annotations

import asyncio
import logging

from server.engine.protocol import Chunk

log = logging.getLogger(__name__)


class Outbox:
    """Collect a step's chunks and hand them to each event loop in one call."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Chunk], Chunk]]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Chunk], chunk: Chunk) -> None:
        """Keep a chunk for the next ``flush``."""
        self._by_loop.setdefault(loop, []).append((queue, chunk))

    def flush(self) -> None:
        """Deliver; chunks for a loop that is closed are dropped with it."""
        batches, self._by_loop = self._by_loop, {}
        for loop, items in batches.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:
                log.debug("an event loop closed before its chunks were delivered")


def _deliver(items: list[tuple[asyncio.Queue[Chunk], Chunk]]) -> None:
    for queue, chunk in items:
        queue.put_nowait(chunk)
