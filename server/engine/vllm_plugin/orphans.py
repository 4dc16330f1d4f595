"""End an engine process when the process that started it is gone, however that ended."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

_EXIT_STATUS = 70
_watching = False


def end_with_parent() -> None:
    """Watch the parent from a thread and exit at once when it dies; does nothing in a main process."""
    global _watching  # noqa: PLW0603  one watch per process
    parent = multiprocessing.parent_process()
    if parent is None or _watching:
        return
    _watching = True
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(_EXIT_STATUS)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
