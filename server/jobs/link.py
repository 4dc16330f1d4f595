"""The gateway's line to Redis: found again whenever it comes back, and watched while it is there."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path

import redis

from adapter_store.jobs import JobJournal, JobQueue, connect
from adapter_store.redis_server import RedisServer
from server.logs import log
from server.metrics import Metrics
from server.pools import WATCH

_LOOK_SECONDS = 2.0
_RECONCILE_SECONDS = 15.0


class RedisPlace:
    """Know where Redis is: at a URL, or else the embedded server of the home, started at first need."""

    def __init__(self, url: str, home: Path) -> None:
        self._url = url
        self._home = home
        self._server: RedisServer | None = None

    def connect(self) -> redis.Redis:
        """Return a client; raise QueueUnavailable with what to do."""
        if self._url:
            return connect(self._url)
        if self._server is None or self._server.ended():
            self._server = RedisServer.start(self._home)
        return connect(self._server.url)

    def close(self) -> None:
        """Stop the embedded server if this process started it."""
        if self._server is not None:
            self._server.stop()


class QueueLink:
    """Hold the queue of one lineage, connecting at first need and again after Redis was gone."""

    def __init__(self, place: RedisPlace, lineage: str, journal: JobJournal) -> None:
        self.journal = journal
        self.stopping = False
        self._place = place
        self._lineage = lineage
        self._queue: JobQueue | None = None
        self._lock = threading.Lock()

    def queue(self) -> JobQueue:
        """Return the queue; raise QueueUnavailable while Redis cannot be reached."""
        with self._lock:
            if self._queue is None:
                self._queue = JobQueue(self._place.connect(), self._lineage)
            return self._queue

    async def watch(self, metrics: Metrics) -> None:
        """Publish the queue's state and hand in again what Redis lost, until cancelled."""
        next_reconcile = 0.0
        was_up: bool | None = None
        reconciled: str | None = None  # the run of Redis that was brought to agree
        while True:
            try:
                depth, oldest, buried, run = await WATCH.run(self._look)
                metrics.show_queue(depth, oldest)
                metrics.show_dead_letters(buried)
                is_new = run != reconciled
                if is_new or time.monotonic() >= next_reconcile:
                    await WATCH.run(self._reconcile, ended=is_new)
                    next_reconcile = time.monotonic() + _RECONCILE_SECONDS
                    reconciled = run
                if was_up is False:
                    log("the queue is back")
                was_up = True
            except Exception as error:  # noqa: BLE001  whatever it is, serving goes on and the next look tries again
                self._forget()
                reconciled = None
                metrics.show_queue(None, None)
                if was_up is not False:
                    log("the queue is not reachable", logging.WARNING, reason=str(error)[:300])
                was_up = False
            await asyncio.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Let go of the connection, and of the embedded server if it is ours."""
        self._forget()
        self._place.close()

    def _forget(self) -> None:
        with self._lock:
            self._queue = None

    def _look(self) -> tuple[int, float, int, str]:
        queue = self.queue()
        return queue.depth(), queue.oldest_seconds(), queue.buried(), queue.server_run()

    def _reconcile(self, *, ended: bool) -> None:
        count = self.journal.reconcile(self.queue(), ended=ended)
        if count:
            log("jobs that Redis had lost were handed in again", logging.WARNING, jobs=count)
