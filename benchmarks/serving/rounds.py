"""Run the systems in turns over the same requests, and time tokens."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.live.figures import gaps_of, percentile, poisson_moments
from benchmarks.serving.systems import System
from benchmarks.serving.workload import Workload


@dataclass(frozen=True, slots=True)
class Load:
    """Hold one load: output tokens a second, median seconds to the first token, p99 gap between tokens."""

    system: str
    concurrent: int
    repeat: int
    tokens_per_second: float
    first_token_seconds: float
    p99_gap_seconds: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Hold one open-loop load: requests offered a second, and seconds from arrival to the last token."""

    system: str
    offered_per_second: float
    median_seconds: float
    p95_seconds: float


async def closed_load(system: System, requests: Sequence[Any], repeat: int) -> Load:
    """Ask everything at once and wait for all answers."""
    began = time.perf_counter()

    async def ask(number: int) -> list[float]:
        return [moment async for moment in system.ask(number, requests[number])]

    times = await asyncio.gather(*(ask(number) for number in range(len(requests))))
    tokens = sum(len(moments) for moments in times)
    gaps = [gap for moments in times for gap in gaps_of(moments)]
    return Load(
        system.name,
        len(requests),
        repeat,
        tokens / (max(moments[-1] for moments in times) - began),
        statistics.median(moments[0] - began for moments in times),
        percentile(gaps, 0.99),
    )


async def interleaved(
    systems: Sequence[System],
    workload: Workload,
    concurrent: int,
    repeats: int,
    tick: Callable[[str], None],
) -> list[Load]:
    """Measure all systems in every repeat, each time in another order, after one load that does not count."""
    order = random.Random(concurrent)
    found = []
    for repeat in range(-1, repeats):
        requests = workload.requests(concurrent, seed=1000 * concurrent + repeat)
        for system in order.sample(list(systems), len(systems)):
            load = await closed_load(system, requests, repeat)
            tick(f"{system.name}, {concurrent} at once: {load.tokens_per_second:.0f} tokens/s")
            if repeat >= 0:
                found.append(load)
    return found


async def open_load(system: System, workload: Workload, rate: float, seconds: float) -> Latency:
    """Offer requests at random moments (Poisson), ``rate`` a second, answered or not."""
    waits = poisson_moments(rate, seconds, seed=int(rate * 1000))
    requests = workload.requests(len(waits), seed=int(rate * 1000))

    async def ask(number: int, wait: float) -> float:
        await asyncio.sleep(wait)
        began = time.perf_counter()
        async for _ in system.ask(number, requests[number]):
            pass
        return time.perf_counter() - began

    took = await asyncio.gather(*(ask(number, wait) for number, wait in enumerate(waits)))
    return Latency(system.name, rate, statistics.median(took), percentile(took, 0.95))
