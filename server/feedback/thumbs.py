"""Count thumbs by version, in memory: what a comparison of versions reads."""

from __future__ import annotations

import threading
from collections import OrderedDict

UP, DOWN = "up", "down"
MOST_VERSIONS = 64


class Thumbs:
    """Hold the thumbs of the versions that were rated last, at most ``MOST_VERSIONS``."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, version: str, rating: str) -> None:
        """Count one thumb; ``rating`` is ``up`` or ``down``."""
        with self._lock:
            up, down = self._counts.pop(version, (0, 0))
            self._counts[version] = (up + (rating == UP), down + (rating == DOWN))
            if len(self._counts) > MOST_VERSIONS:
                self._counts.popitem(last=False)

    def read(self) -> dict[str, tuple[int, int]]:
        """Return (up, down) by version."""
        with self._lock:
            return dict(self._counts)
