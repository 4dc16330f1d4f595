"""The arithmetic of the serving programs: percentiles, gaps, and ratios that carry their spread."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Spread:
    """Hold the median of repeated figures with the least and the largest; NaN without any."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize figures; NaN among them is left out."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(statistics.median(known), min(known), max(known), len(known))

    def shown(self, scale: float = 1.0, digits: int = 2, unit: str = "") -> str:
        """Return ``median (least to most)`` times ``scale`` in words, a dash for none."""
        if not self.count:
            return "-"
        parts = [f"{scale * value:.{digits}f}" for value in (self.median, self.least, self.most)]
        return f"{parts[0]}{unit} ({parts[1]} to {parts[2]})"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of ``values`` do not exceed; NaN for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def gaps_of(moments: Sequence[float]) -> list[float]:
    """Return the seconds between neighbors of one answer's moments."""
    return [after - before for before, after in pairwise(moments)]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratios of figures that were measured in pairs; NaN where nothing can be divided."""
    return [
        a / b if b else math.nan
        for a, b in zip(above, below, strict=True)  # a pair is a round: both or neither were measured
    ]


def poisson_moments(rate_per_second: float, seconds: float, seed: int) -> list[float]:
    """Return moments of independent arrivals within ``seconds``, ascending, the same for the same seed."""
    source = random.Random(f"arrivals-{seed}")
    moments: list[float] = []
    at = source.expovariate(rate_per_second)
    while at < seconds:
        moments.append(at)
        at += source.expovariate(rate_per_second)
    return moments
