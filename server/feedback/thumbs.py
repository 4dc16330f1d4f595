"""Count thumbs by version, in memory: what a comparison of versions reads."""

from __future__ import annotations

import threading
from collections import OrderedDict

UP, DOWN = "up", "down"
MOST_VERSIONS = 64
MOST_ANSWERS = 8192


class Thumbs:
    """Hold the thumbs of the versions that were rated last, one for each answer.

    At most ``MOST_VERSIONS`` versions are counted and ``MOST_ANSWERS`` answers told apart.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._given: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, version: str, rating: str, *, answer: str | None = None) -> bool:
        """Count one thumb; the last thumb of one answer replaces the earlier.

        Args:
            version: what had answered.
            rating: ``up`` or ``down``.
            answer: what tells the answer from others; None: it was never rated before.

        Returns:
            False if this very thumb was counted already.
        """
        with self._lock:
            if answer is not None:
                before = self._given.pop(answer, None)
                self._given[answer] = (version, rating)
                if len(self._given) > MOST_ANSWERS:
                    self._given.popitem(last=False)
                if before == (version, rating):
                    return False
                if before is not None and before[0] in self._counts:
                    self._add(*before, -1)
            self._add(version, rating, 1)
            if len(self._counts) > MOST_VERSIONS:
                self._counts.popitem(last=False)
            return True

    def read(self) -> dict[str, tuple[int, int]]:
        """Return (up, down) by version."""
        with self._lock:
            return dict(self._counts)

    def _add(self, version: str, rating: str, number: int) -> None:
        up, down = self._counts.pop(version, (0, 0))
        counts = (up + number * (rating == UP), down + number * (rating == DOWN))
        self._counts[version] = (max(0, counts[0]), max(0, counts[1]))
