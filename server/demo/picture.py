"""Draw the accuracy matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def draw_matrix(
    target: Path, tasks: Sequence[str], stages: Sequence[str], rows: Sequence[Sequence[float | None]]
) -> Path:
    """Write the accuracy matrix as a PNG heat map.

    Args:
        target: File to write; its folder is created.
        tasks: Names of the columns.
        stages: Names of the rows, the untouched base first.
        rows: Accuracy between 0 and 1 per stage and task; None where nothing was measured.

    Returns:
        The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 1.5 * len(tasks), 1.6 + 0.7 * len(stages)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values = [[float("nan") if value is None else value for value in row] for row in rows]
    image = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_yticks(range(len(stages)), stages)
    axes.set_xlabel("held-out pictures of")
    axes.set_ylabel("after stage")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is not None:
                color = "white" if value < 0.6 else "black"
                axes.text(j, i, f"{100 * value:.1f} %", ha="center", va="center", color=color)
    figure.colorbar(image, ax=axes, label="accuracy")
    axes.set_title("Strata: accuracy matrix")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    return target
