"""Draw the gaps of a run over time with its swaps, and how they are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.plotting import new_figure
from benchmarks.swap.phases import Phase

_COLORS = {"promoted": "tab:green", "rolled back": "tab:orange", "refused": "tab:red"}


def draw_all(folder: Path, phases: Sequence[Phase]) -> None:
    """Write two plots for each size of versions into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for size in dict.fromkeys(phase.size for phase in phases):
        own = [phase for phase in phases if phase.size == size]
        _draw_over_time(folder / f"gaps-over-time-{size}.png", own)
        _draw_cumulative(folder / f"gaps-cumulative-{size}.png", own)


def _draw_over_time(target: Path, phases: Sequence[Phase]) -> None:
    """Draw each gap at the moment it ended, one line of panels for each phase."""
    figure = new_figure(9.0, 1.6 * len(phases) + 0.6)
    panels = figure.subplots(len(phases), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for phase, axes in zip(phases, panels, strict=True):
        points = [
            (moment - phase.began, 1000 * gap)
            for answer in phase.answers
            for moment, gap in zip(answer.moments[1:], answer.gaps, strict=True)
        ]
        axes.scatter(*zip(*points, strict=True), s=3, alpha=0.5) if points else None
        for swap in phase.swaps:
            color = _COLORS[swap.kind]
            axes.axvspan(
                swap.publish - phase.began, swap.first_new - phase.began, color=color, alpha=0.3, linewidth=0
            )
        axes.set_ylabel(f"{phase.kind} {phase.number}", fontsize=7)
    panels[0].set_title("gap between tokens (ms); bands: published until served, rolled back, refused")
    panels[-1].set_xlabel("seconds")
    figure.savefig(target)


def _draw_cumulative(target: Path, phases: Sequence[Phase]) -> None:
    """Draw which share of the gaps is longer, on logarithmic axes: steady beside swaps."""
    figure = new_figure(5.5, 4.0)
    axes = figure.subplots()
    for kind in ("steady", "swaps"):
        gaps = sorted(1000 * gap for phase in phases if phase.kind == kind for gap in phase.gaps)
        shares = [1 - place / len(gaps) for place in range(len(gaps))]
        axes.plot(gaps, shares, label=kind)
    axes.axhline(0.01, color="gray", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("gap between tokens (ms)")
    axes.set_ylabel("share of longer gaps")
    axes.legend()
    figure.savefig(target)
