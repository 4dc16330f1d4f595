"""Draw the boards without Grafana: every panel from a Prometheus' own answers, laid out as in the board.

Colors and legends are only near to Grafana's. What this is for: a panel whose queries return nothing says so.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from pathlib import Path
from typing import Any

import httpx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from deploy.grafana.boards.__main__ import BOARDS
from deploy.grafana.boards.panels import COLUMNS

STEPS = 240
Found = tuple[dict[str, Any], dict[str, str], list[tuple[float, float]]]
"""A query of a panel, the labels of a series that it returned, and its (time in s, value) pairs."""
_VARIABLES = {"$__rate_interval": "1m", "$task": ".*", "$alias": ".*"}


class Source:
    """A Prometheus, asked for the last ``minutes`` and for now."""

    def __init__(self, url: str, minutes: float) -> None:
        self._url = url.rstrip("/")
        self._end = time.time()
        self._begin = self._end - minutes * 60

    def series(self, target: dict[str, Any]) -> list[Found]:
        """Return every series of a panel's query that has a finite value.

        Raises:
            RuntimeError: Prometheus refuses the query; its reason is in the message.
        """
        expr, step = target["expr"], (self._end - self._begin) / STEPS
        for name, value in _VARIABLES.items():
            expr = expr.replace(name, value)
        over = {} if target["instant"] else {"start": self._begin, "end": self._end, "step": step}
        path = f"{self._url}/api/v1/query{'_range' if over else ''}"
        answer = httpx.get(path, params={"query": expr, **over}, timeout=30.0, trust_env=False).json()
        if answer["status"] != "success":
            raise RuntimeError(f"{expr}: {answer['error']}")
        found: list[Found] = []
        for one in answer["data"]["result"]:
            pairs = [(float(at), float(value)) for at, value in one.get("values") or [one["value"]]]
            finite = [pair for pair in pairs if math.isfinite(pair[1])]
            found += [(target, one["metric"], finite)] if finite else []
        return found


def in_unit(value: float, unit: str) -> str:
    """Return a value as Grafana writes it in that unit."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit.startswith("prefix:"):
        return f"{unit.removeprefix('prefix:')}{value:g}"
    return f"{value:.3g}" + {"s": " s", "reqps": " req/s"}.get(unit, "")


def legend_of(target: dict[str, Any], labels: dict[str, str]) -> str:
    """Return a series' name: the legend with its labels filled in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), target["legendFormat"])


def draw_panel(axes: Axes, panel: dict[str, Any], source: Source) -> bool:
    """Draw one panel; return whether its queries returned any number."""
    axes.set_title(panel["title"], fontsize=8, loc="left")
    found = [series for target in panel["targets"] for series in source.series(target)]
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] in ("stat", "table") or not found:
        axes.axis("off")
    if not found:
        axes.text(0.5, 0.5, defaults.get("noValue", "no data"), ha="center", color="tab:red")
    elif panel["type"] == "stat":
        texts = {key: one["text"] for map_ in defaults["mappings"] for key, one in map_["options"].items()}
        value = found[0][2][-1][1]
        axes.text(0.5, 0.4, texts.get(f"{value:g}") or in_unit(value, defaults["unit"]), fontsize=16)
    elif panel["type"] == "table":
        _draw_matrix(axes, panel, found)
    else:
        _draw_lines(axes, panel, found)
    return bool(found)


def _draw_matrix(axes: Axes, panel: dict[str, Any], found: list[Found]) -> None:
    wanted = next(one for one in panel["transformations"] if one["id"] == "groupingToMatrix")["options"]
    cells = {
        (labels[wanted["rowField"]], labels[wanted["columnField"]]): in_unit(pairs[-1][1], "percentunit")
        for _, labels, pairs in found
    }
    rows, columns = sorted({row for row, _ in cells}), sorted({column for _, column in cells})
    texts = [[cells.get((row, column), "") for column in columns] for row in rows]
    axes.table(texts, rowLabels=rows, colLabels=columns, bbox=Bbox.from_bounds(0.2, 0.0, 0.8, 0.9))


def _draw_lines(axes: Axes, panel: dict[str, Any], found: list[Found]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults.get("unit") or panel["options"]["yAxis"]["unit"]
    bounds = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
    held = defaults.get("custom", {}).get("lineInterpolation") == "stepAfter"
    now = time.time()
    for target, labels, pairs in found:
        minutes = [(at - now) / 60 for at, _ in pairs]
        (line,) = axes.plot(minutes, [value for _, value in pairs], linewidth=1)
        line.set_label(legend_of(target, labels) or "(no legend)")
        line.set_drawstyle("steps-post" if held else "default")
        if target["refId"] in bounds:
            line.set(color="red", linestyle="--")
    axes.set_ylim(defaults.get("min"), defaults.get("max"))
    axes.yaxis.set_major_formatter(lambda value, _: in_unit(value, unit))
    axes.legend(fontsize=5, loc="upper left", ncols=2)


def draw_board(board: dict[str, Any], source: Source, path: Path) -> list[str]:
    """Write a board as PNG; return the titles of the panels whose queries returned nothing."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = Figure(figsize=(18, height * 0.36), dpi=90)
    empty = []
    for panel in (panel for panel in board["panels"] if panel["type"] != "row"):
        grid = panel["gridPos"]
        left, bottom = grid["x"] / COLUMNS + 0.035, 1 - (grid["y"] + grid["h"] - 0.8) / height
        box = (left, bottom, grid["w"] / COLUMNS - 0.045, (grid["h"] - 2.0) / height)
        if not draw_panel(figure.add_axes(box), panel, source):
            empty.append(panel["title"])
    figure.savefig(path)
    return empty


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the pictures")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back")
    chosen = parser.parse_args()
    source = Source(chosen.prometheus, chosen.minutes)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, board in BOARDS.items():
        empty = draw_board(board.to_json(), source, chosen.out / f"{name}.png")
        print(f"{name}.png: " + ("every panel has values" if not empty else "no values: " + ", ".join(empty)))
