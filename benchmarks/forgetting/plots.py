"""Draw what the tables say: the matrix of each method, tasks over stages, accuracy beside forgetting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.forgetting.report import Record, by_method
from benchmarks.plotting import new_figure
from server.demo.picture import draw_matrix


def draw_all(folder: Path, records: Sequence[Record]) -> None:
    """Write every plot of a stream into ``folder/plots``."""
    learned = {name: runs for name, runs in by_method(records).items() if runs[0]["rows"]}
    if not learned:
        return
    for method, runs in learned.items():
        stages = ["base", *runs[0]["stages"][: len(runs[0]["rows"])]]
        draw_matrix(folder / "plots" / f"matrix-{method}.png", _tasks(runs), stages, _mean_rows(runs))
    _draw_stages(folder / "plots" / "stages.png", learned)
    _draw_balance(folder / "plots" / "accuracy-and-forgetting.png", learned)


def _mean_rows(runs: Sequence[Record]) -> list[list[float | None]]:
    """Return base and stages as the mean over seeds."""
    tables = [[run["base"], *run["rows"]] for run in runs]
    return [
        [statistics.mean(table[stage][task] for table in tables) for task in _tasks(runs)]
        for stage in range(len(tables[0]))
    ]


def _tasks(runs: Sequence[Record]) -> list[str]:
    """Return the tasks that a stream scores, in the order of its stages."""
    return list(dict.fromkeys(runs[0]["stages"]))


def _draw_stages(target: Path, learned: dict[str, list[Record]]) -> None:
    """Draw each task's accuracy over the stages, one panel for each task."""
    first = next(iter(learned.values()))
    tasks = _tasks(first)
    figure = new_figure(3.0 * len(tasks), 3.4)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for number, (task, axes) in enumerate(zip(tasks, panels, strict=True)):
        for method, runs in learned.items():
            column = [row[number] for row in _mean_rows(runs)]
            style: dict[str, Any] = (
                {"linewidth": 2.5, "zorder": 3} if method == "strata" else {"linewidth": 1, "alpha": 0.8}
            )
            axes.plot(range(len(column)), column, marker=".", label=method, **style)
        axes.axvline(first[0]["stages"].index(task) + 1, color="gray", linestyle=":", linewidth=1)
        axes.set_title(task)
        axes.set_xlabel("stage")
        axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("accuracy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def _draw_balance(target: Path, learned: dict[str, list[Record]]) -> None:
    """Draw final average accuracy over forgetting, one point for each run, colored by its method."""
    figure = new_figure(6.5, 5.0)
    axes = figure.subplots()
    for method, runs in learned.items():
        x = [100 * run["measures"]["forgetting"] for run in runs]
        y = [100 * run["measures"]["average_accuracy"] for run in runs]
        emphasis: dict[str, Any] = {"s": 60, "marker": "*", "zorder": 3} if method == "strata" else {"s": 22}
        axes.scatter(x, y, label=method, **emphasis)
    axes.legend(fontsize=8)
    axes.set_xlabel("forgetting (points)")
    axes.set_ylabel("final average accuracy (%)")
    axes.grid(alpha=0.3)
    figure.savefig(target)
