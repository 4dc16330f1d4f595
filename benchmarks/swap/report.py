"""Turn the phases into the figures that are promised, and say whether they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from benchmarks.live.figures import Spread, percentile, ratios
from benchmarks.swap.checking import Changed
from benchmarks.swap.phases import Phase
from benchmarks.swap.swapping import Swap

GAP_GOAL, FLIP_GOAL_SECONDS, ANSWER_GOAL_SECONDS = 1.1, 0.05, 1.0
PARTS = (
    "publish",
    "move",
    "notice",
    "manifest",
    "verify",
    "load",
    "room",
    "stage",
    "probe",
    "flip",
    "answer",
)

_COLUMNS = (
    "Versions",
    "p99 gap steady (ms)",
    "under swaps (ms)",
    "ratio of rounds (goal 1.1)",
    "pooled",
    "p50 ratio",
    "at swaps beside between them",
    "steady beside steady",
    "flip (ms, goal 50)",
    "overlap (ms)",
    "publish to answer (s, goal 1)",
)


@dataclass(frozen=True, slots=True)
class SizeReport:
    """Hold the figures for versions of one size; seconds throughout, ratios are of rounds.

    Attributes:
        window_ratio: p99 of the gaps at a swap over p99 of the others, in the phases with swaps.
        noise: p99 gap of each steady phase over the steady phase before: what a ratio is without any swap.
    """

    size: str
    size_bytes: int
    steady_p99: Spread
    swaps_p99: Spread
    ratio: Spread
    noise: Spread
    pooled_ratio: float
    median_ratio: Spread
    window_ratio: float
    flip: Spread
    overlap: float
    to_answer: Spread
    parts: dict[str, float]


def report_of(phases: Sequence[Phase], size: str) -> SizeReport:
    """Summarize all rounds of one size."""
    own = sorted((phase for phase in phases if phase.size == size), key=lambda phase: phase.number)
    steady = [phase for phase in own if phase.kind == "steady"]
    under = [phase for phase in own if phase.kind == "swaps"]
    swaps = [swap for phase in under for swap in phase.swaps if swap.kind != "refused"]
    served = [
        swap for swap in swaps if swap.first_new and swap.first_token
    ]  # the others stand in the failures
    calm, busy = [phase.p99_gap_seconds for phase in steady], [phase.p99_gap_seconds for phase in under]
    middles = ratios([percentile(p.gaps, 0.5) for p in under], [percentile(p.gaps, 0.5) for p in steady])
    return SizeReport(
        size=size,
        size_bytes=max((swap.size_bytes for swap in served), default=0),
        steady_p99=Spread.of(calm),
        swaps_p99=Spread.of(busy),
        ratio=Spread.of(ratios(busy, calm)),
        noise=Spread.of(after / before for before, after in pairwise(calm) if before),
        pooled_ratio=_pooled(under) / _pooled(steady) if steady and _pooled(steady) else math.nan,
        median_ratio=Spread.of(middles),
        window_ratio=_window_ratio(under),
        flip=Spread.of(swap.flip_seconds for swap in served),
        overlap=max((phase.overlap_seconds() for phase in under), default=0.0),
        to_answer=Spread.of(swap.to_answer_seconds for swap in served),
        parts=_median_parts(served),
    )


def _pooled(phases: Sequence[Phase]) -> float:
    return percentile([gap for phase in phases for gap in phase.gaps], 0.99)


def _window_ratio(phases: Sequence[Phase]) -> float:
    parted = [phase.gaps_at_swaps() for phase in phases]
    at = [gap for near, _ in parted for gap in near]
    apart = [gap for _, others in parted for gap in others]
    return percentile(at, 0.99) / percentile(apart, 0.99)


def _median_parts(swaps: Sequence[Swap]) -> dict[str, float]:
    return {part: Spread.of(swap.parts.get(part, math.nan) for swap in swaps).median for part in PARTS}


def failures_of(phases: Sequence[Phase]) -> list[str]:
    """Return why requests failed or swaps went wrong, one sentence each."""
    asked = [answer.failure for phase in phases for answer in phase.answers if answer.failure]
    swapped = [f"{s.version} ({s.kind}): {text}" for p in phases for s in p.swaps for text in s.failures]
    refused = {swap.version for phase in phases for swap in phase.swaps if swap.kind == "refused"}
    served = [answer.version for phase in phases for answer in phase.answers if answer.version in refused]
    return asked + swapped + [f"{version} answered though its probe fails" for version in served]


def as_text(
    reports: Sequence[SizeReport],
    phases: Sequence[Phase],
    changed: Sequence[Changed],
    failures: Sequence[str],
) -> str:
    """Lay everything out as Markdown."""
    asked = sum(len(phase.answers) for phase in phases)
    swaps = [swap for phase in phases for swap in phase.swaps]
    kinds = {kind: sum(swap.kind == kind for swap in swaps) for kind in ("rolled back", "refused")}
    really = [item for item in changed if not item.near_tie]
    counts = f"{kinds['rolled back']} rolled back, {kinds['refused']} with a probe that fails"
    ties = len(changed) - len(really)
    lines = [
        f"{asked} requests, {len(swaps)} versions published ({counts})",
        f"cores used by other programs meanwhile: {Spread.of(phase.others for phase in phases).shown()}",
        f"failed: {len(failures)} (goal 0)",
        f"changed answers: {len(really)} (goal 0); near ties gone the other way: {ties}",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
        *(_row(report) for report in reports),
        "",
        "Median milliseconds of the parts of publish to answer:",
        "",
        "| Versions | " + " | ".join(PARTS) + " |",
        "|---" * (len(PARTS) + 1) + "|",
        *(
            f"| {report.size} | " + " | ".join(f"{1000 * report.parts[part]:.0f}" for part in PARTS) + " |"
            for report in reports
        ),
    ]
    return "\n".join([*lines, *(f"failure: {text}" for text in list(failures)[:20])])


def _row(report: SizeReport) -> str:
    cells = [
        f"{report.size}, {report.size_bytes / 1e6:.1f} MB",
        report.steady_p99.shown(1000, 0),
        report.swaps_p99.shown(1000, 0),
        report.ratio.shown(),
        f"{report.pooled_ratio:.2f}",
        report.median_ratio.shown(),
        f"{report.window_ratio:.2f}",
        report.noise.shown(),
        report.flip.shown(1000, 0),
        f"{1000 * report.overlap:.0f}",
        report.to_answer.shown(),
    ]
    return "| " + " | ".join(cells) + " |"


def as_record(
    reports: Sequence[SizeReport],
    phases: Sequence[Phase],
    changed: Sequence[Changed],
    failures: Sequence[str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return everything as plain values for JSON, raw figures included."""
    return {
        "settings": settings,
        "reports": [asdict(report) for report in reports],
        "failures": list(failures),
        "changed": [asdict(item) for item in changed],
        "phases": [phase.to_dict() for phase in phases],
    }
