"""Print ratios with their spread, and draw tokens/s over concurrency and latency over offered load."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.live.figures import Spread
from benchmarks.plotting import new_figure
from benchmarks.serving.rounds import Latency, Load

BASE = "bare base"


def ratios(loads: Sequence[Load], system: str, other: str, concurrent: int) -> list[float]:
    """Return tokens/s of ``system`` over ``other`` for every repeat; both ran on the same requests."""
    by_key = {(load.system, load.repeat): load for load in loads if load.concurrent == concurrent}
    repeats = sorted({load.repeat for load in loads if load.concurrent == concurrent})
    return [
        by_key[system, repeat].tokens_per_second / by_key[other, repeat].tokens_per_second
        for repeat in repeats
        if (system, repeat) in by_key and (other, repeat) in by_key
    ]


def as_markdown(loads: Sequence[Load], floors: dict[str, float]) -> str:
    """Lay out one row for each system and concurrency, with its ratio to the base and the floor of that."""
    lines = [
        "| at once | system | tokens/s | first token (ms) | p99 gap (ms) | of the base | floor |",
        "| ---: | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for concurrent in sorted({load.concurrent for load in loads}):
        for system in dict.fromkeys(load.system for load in loads):
            mine = [load for load in loads if (load.concurrent, load.system) == (concurrent, system)]
            if not mine:
                continue
            tokens, first, gap = (
                statistics.median(getattr(load, name) for load in mine)
                for name in ("tokens_per_second", "first_token_seconds", "p99_gap_seconds")
            )
            floor = f"{floors[system]:.3f}" if system in floors else ""
            share = Spread.of(ratios(loads, system, BASE, concurrent)).shown(digits=3)
            lines.append(
                f"| {concurrent} | {system} | {tokens:.1f} | {1000 * first:.0f} | {1000 * gap:.0f} "
                f"| {share} | {floor} |"
            )
    return "\n".join(lines)


def draw_throughput(target: Path, loads: Sequence[Load]) -> None:
    """Draw tokens/s over requests at once, one line for each system."""
    figure, axes = _panel("requests at once", "tokens/s")
    for system in dict.fromkeys(load.system for load in loads):
        mine = [load for load in loads if load.system == system]
        steps = sorted({load.concurrent for load in mine})
        middle = [
            statistics.median(load.tokens_per_second for load in mine if load.concurrent == step)
            for step in steps
        ]
        axes.plot(steps, middle, marker="o", label=system)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts := sorted({load.concurrent for load in loads}), labels=[str(n) for n in counts])
    _save(figure, axes, target)


def draw_latency(target: Path, latencies: Sequence[Latency]) -> None:
    """Draw seconds to the last token over requests offered a second: median solid, 95th percentile dashed."""
    figure, axes = _panel("requests offered a second", "seconds to the last token")
    for system in dict.fromkeys(latency.system for latency in latencies):
        mine = sorted((x for x in latencies if x.system == system), key=lambda x: x.offered_per_second)
        rates = [latency.offered_per_second for latency in mine]
        (line,) = axes.plot(rates, [x.median_seconds for x in mine], marker="o", label=system)
        axes.plot(rates, [x.p95_seconds for x in mine], linestyle="--", color=line.get_color())
    _save(figure, axes, target)


def _panel(x: str, y: str) -> tuple[Any, Any]:
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, target: Path) -> None:
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
