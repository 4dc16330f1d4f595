"""Steady load, and the same load while versions are swapped, in turns."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from benchmarks.live.figures import percentile, poisson_moments
from benchmarks.live.load import Answer, at_most, open_loop
from benchmarks.live.process import GatewayProcess
from benchmarks.live.questions import QUESTIONS, Asked, mixed
from benchmarks.live.quiet import OtherLoad
from benchmarks.live.versions import Draft
from benchmarks.swap.swapping import Kind, Swap, Swapper
from benchmarks.telling import Teller

PhaseKind = Literal["steady", "swaps"]


@dataclass(frozen=True, slots=True)
class Load:
    """Say what the clients do: requests a second, seconds of a phase, pictures, longest answer in tokens."""

    rate: float
    seconds: float
    pictures: int
    max_tokens: int

    def of(self, seed: int) -> tuple[list[float], list[Asked]]:
        """Return the moments of arrival and the questions of one round."""
        moments = poisson_moments(self.rate, self.seconds, seed)
        return moments, mixed(len(moments), self.pictures, self.max_tokens, seed)


@dataclass(slots=True)
class Phase:
    """Hold what one phase measured.

    Attributes:
        size: name of the size of the versions.
        number: the round; both phases of a round get the same requests at the same moments.
        began: seconds since 1970.
        others: cores that other programs of the machine used meanwhile.
    """

    size: str
    kind: PhaseKind
    number: int
    began: float
    answers: list[Answer] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    others: float = math.nan

    @property
    def gaps(self) -> list[float]:
        """Return all gaps between pieces of text, in seconds."""
        return [gap for answer in self.answers for gap in answer.gaps]

    @property
    def p99_gap_seconds(self) -> float:
        """Return the 99th percentile of the gaps."""
        return percentile(self.gaps, 0.99)

    def gaps_at_swaps(self) -> tuple[list[float], list[float]]:
        """Return the gaps that lie at a swap, from publication to first answer, and all others."""
        spans = [(swap.publish, max(swap.first_new, swap.first_token)) for swap in self.swaps]
        at, apart = [], []
        for answer in self.answers:
            for (begin, end), gap in zip(pairwise(answer.moments), answer.gaps, strict=True):
                near = any(begin < last and first < end for first, last in spans)
                (at if near else apart).append(gap)
        return at, apart

    def overlap_seconds(self) -> float:
        """Return how long after a version's first request another one still began on the version before."""
        longest = 0.0
        for swap in self.swaps:
            new = [answer.sent for answer in self.answers if answer.version == swap.version]
            if swap.kind != "promoted" or not new:
                continue
            old = [a.sent for a in self.answers if a.version == swap.before and swap.moved < a.sent]
            longest = max(longest, *(sent - min(new) for sent in old), 0.0)
        return longest

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "size": self.size,
            "kind": self.kind,
            "round": self.number,
            "began": self.began,
            "others": self.others,
            "p50_gap_seconds": percentile(self.gaps, 0.5),
            "p99_gap_seconds": self.p99_gap_seconds,
            "p99_first_token_seconds": percentile([a.first_seconds for a in self.answers if a.moments], 0.99),
            "answers": [answer.to_dict() for answer in self.answers],
            "swaps": [swap.to_dict() for swap in self.swaps],
        }


async def warm(gateway: GatewayProcess, load: Load) -> None:
    """Ask about every picture and with every text once, so that no phase pays for being the first."""
    asked = [Asked(number, QUESTIONS[number % len(QUESTIONS)], 2) for number in range(load.pictures)]
    asked += [Asked(0, text, load.max_tokens) for text in QUESTIONS]
    await at_most(gateway.url, asked, ["strata"] * len(asked), 4)


async def run_phase(
    gateway: GatewayProcess,
    swapper: Swapper,
    phase: Phase,
    load: Load,
    planned: Sequence[tuple[Draft, Kind]],
    teller: Teller,
) -> None:
    """Run one phase: the load, and beside it the planned swaps, evenly spread."""
    moments, questions = load.of(phase.number)
    phase.began = time.time()

    async def swaps() -> None:
        for place, (draft, kind) in enumerate(planned):
            at = phase.began + (place + 0.5) * load.seconds / len(planned)
            await asyncio.sleep(max(0.0, at - time.time()))
            swap, answers = await swapper.swap(draft, kind)
            phase.swaps.append(swap)
            phase.answers += answers
            teller.step()

    watch = OtherLoad(lambda: (os.getpid(), gateway.pid))
    swapping = asyncio.create_task(swaps())
    phase.answers += await open_loop(gateway.url, moments, questions, "strata", teller.step)
    await swapping
    phase.others = watch.cores()
