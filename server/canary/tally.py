"""What was seen of one version while it answers: requests, errors, latencies, thumbs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

_KEPT = 2000


@dataclass(slots=True)
class Tally:
    """Count the answers of one version; ``seconds`` holds how long the latest good ones took."""

    requests: int = 0
    errors: int = 0
    thumbs_up: int = 0
    thumbs_down: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def add(self, seconds: float, *, failed: bool) -> None:
        """Count one answer that was given or broke off."""
        self.requests += 1
        if failed:
            self.errors += 1
        else:
            self.seconds.append(seconds)

    @property
    def error_ratio(self) -> float | None:
        """Return the share of requests that failed; None before the first one."""
        return self.errors / self.requests if self.requests else None

    @property
    def thumbs_down_ratio(self) -> float | None:
        """Return the share of thumbs that point down; None without thumbs."""
        given = self.thumbs_up + self.thumbs_down
        return self.thumbs_down / given if given else None

    def seconds_at(self, share: float) -> float | None:
        """Return what ``share`` of the kept latencies stay within; None without any."""
        return quantile(self.seconds, share)


def quantile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest value that at least ``share`` of ``values`` do not exceed; None without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
