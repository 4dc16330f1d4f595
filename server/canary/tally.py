"""What was seen of one version while it answers: requests, errors, latencies, thumbs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from server.canary.pace import Latency

_KEPT = 2000


def _latest() -> deque[float]:
    return deque(maxlen=_KEPT)


@dataclass(slots=True)
class Tally:
    """Count the answers of one version, and keep how long the latest took that did not fail, in seconds.

    Those that a client gave up are among them with the time they had taken by then. ``sure_token_seconds``
    are those of ``token_seconds`` that are no least values.
    """

    requests: int = 0
    errors: int = 0
    thumbs_up: int = 0
    thumbs_down: int = 0
    seconds: deque[float] = field(default_factory=_latest)
    first_token_seconds: deque[float] = field(default_factory=_latest)
    token_seconds: deque[float] = field(default_factory=_latest)
    sure_token_seconds: deque[float] = field(default_factory=_latest)

    def add(self, took: Latency, *, failed: bool) -> None:
        """Count one answer that was given, given up, or broke off."""
        self.requests += 1
        if failed:
            self.errors += 1
            return
        self.seconds.append(took.whole)
        if took.first_token is not None:
            self.first_token_seconds.append(took.first_token)
        if took.token is not None:
            self.token_seconds.append(took.token)
            if not took.is_least:
                self.sure_token_seconds.append(took.token)

    @property
    def error_ratio(self) -> float | None:
        """Return the share of requests that failed; None before the first one."""
        return self.errors / self.requests if self.requests else None

    @property
    def thumbs_down_ratio(self) -> float | None:
        """Return the share of thumbs that point down; None without thumbs."""
        given = self.thumbs_up + self.thumbs_down
        return self.thumbs_down / given if given else None


def quantile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest value that at least ``share`` of ``values`` do not exceed; None without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
