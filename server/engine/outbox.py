"""Carry items from an engine's thread to the callers' event loops."""

from __future__ import annotations

import asyncio
import logging
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Collect a step's items and hand them to each event loop in one call."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Item], Item]]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Item], item: Item) -> None:
        """Keep an item for the next ``flush``."""
        self._by_loop.setdefault(loop, []).append((queue, item))

    def flush(self) -> None:
        """Deliver; items for a loop that is closed are dropped with it."""
        batches, self._by_loop = self._by_loop, {}
        for loop, items in batches.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:
                log.debug("an event loop closed before its items were delivered")


def _deliver(items: list[tuple[asyncio.Queue[Item], Item]]) -> None:
    for queue, item in items:
        queue.put_nowait(item)
