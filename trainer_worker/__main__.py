"""Start a trainer worker: ``python -m trainer_worker [--flags]``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from adapter_store.errors import StrataError
from adapter_store.settings import make_home, read_settings
from trainer_worker.settings import WorkerSettings

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Read settings, load the base, run jobs until SIGTERM or SIGINT; return the exit status."""
    try:
        settings = read_settings(
            WorkerSettings, sys.argv[1:] if argv is None else argv, program="python -m trainer_worker"
        )
        make_home(settings.home)
    except StrataError as error:
        sys.stderr.write(f"strata worker: {error.message}\n")
        return USAGE_ERROR
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    stop = threading.Event()
    _stop_on_signals(stop)
    os.nice(settings.nice)
    from adapter_store.base.allocator import tune_allocator

    tune_allocator()
    try:
        _run(settings, stop)
    except StrataError as error:
        sys.stderr.write(f"strata worker: {error.message}\n")
        return 1
    return 0


def _run(settings: WorkerSettings, stop: threading.Event) -> None:
    from adapter_store.jobs.connection import connect
    from adapter_store.jobs.presence import Presence
    from adapter_store.jobs.queue import JobQueue
    from trainer_worker.opening import open_workshop
    from trainer_worker.worker import Worker

    with _redis_url(settings) as url:
        queue = JobQueue(
            connect(url),
            settings.model_name,
            lease_seconds=settings.lease_seconds,
            max_deliveries=settings.max_deliveries,
            presence=Presence.take(settings.home / "run" / "workers"),
        )
        shop = open_workshop(settings)
        port = shop.metrics.serve(settings.metrics_host, settings.metrics_port)
        logging.getLogger("strata.worker").info(
            "worker %s is ready on base %s; metrics on port %d", settings.worker_id, shop.base.base_id, port
        )
        Worker(shop, queue, settings.worker_id, stop).run()


@contextmanager
def _redis_url(settings: WorkerSettings) -> Iterator[str]:
    """Yield the URL of the Redis to use: the named one, or the home's (started if it is not there)."""
    if settings.redis_url:
        yield settings.redis_url
        return
    from adapter_store.redis_server import RedisServer

    with RedisServer.start(settings.home) as server:
        yield server.url


def _stop_on_signals(stop: threading.Event) -> None:
    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


if __name__ == "__main__":
    sys.exit(main())
