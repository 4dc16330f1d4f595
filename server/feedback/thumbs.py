"""Count thumbs up and down by the version that answered."""

from __future__ import annotations

import threading
from typing import Literal

Rating = Literal["up", "down"]


class Thumbs:
    """Hold the thumbs of every version since the start of the process; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, int]] = {}

    def count(self, version: str, rating: Rating) -> None:
        """Count one thumb for what ``version`` answered."""
        with self._lock:
            up, down = self._counts.get(version, (0, 0))
            self._counts[version] = (up + 1, down) if rating == "up" else (up, down + 1)

    def read(self) -> dict[str, tuple[int, int]]:
        """Return the thumbs up and down of every version that got any."""
        with self._lock:
            return dict(self._counts)
