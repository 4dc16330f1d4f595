"""The kinds of panels that the boards are made of, and how a board lays them out.

A panel says how to read it and what to do about it; both stand behind its small ``i``. Where the gate has a
bound, the bound is a query like any other, so a changed policy moves the red line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

SOURCE = {"type": "prometheus", "uid": "prometheus"}
TAG = "strata"
RATE = "$__rate_interval"
COLUMNS = 24
GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"

Steps = Sequence[tuple[float | None, str]]
"""Colors from a value on; the first has no value."""


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression of a panel; ``bound`` draws it as a dashed red line."""

    expr: str
    legend: str = ""
    bound: bool = False
    instant: bool = False
    format: str = "time_series"

    def to_json(self, ref: str) -> dict[str, Any]:
        """Return the target as Grafana writes it."""
        return {
            "refId": ref,
            "datasource": SOURCE,
            "expr": self.expr,
            "legendFormat": self.legend,
            "instant": self.instant,
            "range": not self.instant,
            "format": self.format,
        }


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; ``width`` in columns of 24, ``height`` in Grafana's grid units."""

    kind: str
    title: str
    read: str
    act: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[Mapping[str, Any], ...] = ()
    transformations: tuple[Mapping[str, Any], ...] = ()

    def to_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Return the panel as Grafana writes it."""
        refs = list(zip(ascii_uppercase, self.queries, strict=False))
        bounds = [_bound_line(ref) for ref, query in refs if query.bound]
        body: dict[str, Any] = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": f"{self.read}\n\n**What to do:** {self.act}",
            "datasource": SOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "fieldConfig": {"defaults": dict(self.defaults), "overrides": [*self.overrides, *bounds]},
            "options": dict(self.options),
            "targets": [query.to_json(ref) for ref, query in refs],
        }
        if self.transformations:
            body["transformations"] = list(self.transformations)
        return body


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard: rows of panels under headings, with variables."""

    uid: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]
    variables: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the dashboard as Grafana reads it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": 41,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "links": [_LINKS],
            "annotations": {"list": list(_MARKS)},
            "templating": {"list": [_variable(name, query) for name, query in self.variables.items()]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        placed: list[dict[str, Any]] = []
        y = 0
        for heading, panels in self.rows.items():
            grid = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
            row = {"id": len(placed) + 1, "type": "row", "title": heading, "gridPos": grid}
            placed.append({**row, "collapsed": False, "panels": []})
            x, y, tallest = 0, y + 1, 0
            for panel in panels:
                if x + panel.width > COLUMNS:
                    x, y, tallest = 0, y + tallest, 0
                placed.append(panel.to_json(len(placed) + 1, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return placed


_LINKS = {
    "type": "dashboards",
    "title": "Strata",
    "tags": [TAG],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
}


def _mark(name: str, color: str, expr: str, title: str, *, at_value: bool = False) -> dict[str, Any]:
    """Return marks on every panel; ``at_value``: the value is the moment, in milliseconds."""
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "iconColor": color,
        "expr": expr,
        "step": "60s",
        "titleFormat": title,
        "useValueForTime": at_value,
    }


_MARKS = (
    _mark(
        "Aliases moved",
        GREEN,
        "max by (alias, version) (strata_adapter_alias_moved_timestamp_seconds"
        '{alias=~"stable|canary|shadow"}) * 1000',
        "{{alias}} is {{version}}",
        at_value=True,
    ),
    _mark(
        "Promotions",
        ORANGE,
        "sum by (decision) (increase(strata_promotions_total[1m])) > 0",
        "the worker decided: {{decision}}",
    ),
    _mark(
        "Refused",
        RED,
        "sum by (reason) (increase(strata_adapter_rejections_total[1m])) > 0",
        "a version was refused: {{reason}}",
    ),
)


def lines(
    title: str,
    read: str,
    act: str,
    *queries: Query,
    unit: str,
    width: int = 8,
    whole: bool = False,
    from_zero: bool = False,
    steps: bool = False,
    stacked: bool = False,
) -> Panel:
    """Return values over time; ``whole``: from 0 to 1, ``steps``: values that hold until the next one.

    Shares begin at their least value, since forgetting may lie below 0; ``from_zero``: they begin at 0.
    """
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if steps else "linear",
        "lineWidth": 1,
        "fillOpacity": 25 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    defaults: dict[str, Any] = {"unit": unit, "custom": custom, "color": {"mode": "palette-classic"}}
    if whole:
        defaults |= {"min": 0, "max": 1}
    elif from_zero or unit != "percentunit":
        defaults["min"] = 0
    legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return Panel("timeseries", title, read, act, queries, width, defaults=defaults, options=options)


def measured(
    title: str,
    read: str,
    act: str,
    query: Query,
    bound: str,
    *,
    name: str = "the gate's bound",
    width: int = 8,
) -> Panel:
    """Return a share that is measured once a stage, and the expression ``bound`` that it is held against."""
    line = Query(bound, name, bound=True)
    return lines(title, read, act, query, line, unit="percentunit", width=width, steps=True)


def number(
    title: str,
    read: str,
    act: str,
    expr: str,
    *,
    unit: str,
    steps: Steps = ((None, BLUE),),
    empty: str = "no data",
    mappings: Mapping[str, str] | None = None,
    width: int = 4,
) -> Panel:
    """Return the present value, large, in the color of its step.

    It is asked for now and not over time: else what is not known now would show its last known value.
    """
    defaults: dict[str, Any] = {
        "unit": unit,
        "noValue": empty,
        "color": {"mode": "thresholds"},
        "thresholds": _thresholds(steps),
        "mappings": _mappings(mappings or {}),
    }
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "value",
    }
    return Panel("stat", title, read, act, (Query(expr, instant=True),), width, 4, defaults, options)


def matrix(
    title: str, read: str, act: str, expr: str, *, row: str, column: str, heading: str, width: int = 12
) -> Panel:
    """Return a heat map of one value per row and column label, colored from red (0) to green (1)."""
    corner = f"{row}\\{column}"
    plain = [
        {"id": "displayName", "value": heading},
        {"id": "custom.cellOptions", "value": {"type": "auto"}},
        {"id": "unit", "value": "string"},
    ]
    defaults = {
        "unit": "percentunit",
        "decimals": 0,
        "min": 0,
        "max": 1,
        "noValue": "",
        "color": {"mode": "continuous-RdYlGr"},
        "custom": {"align": "center", "cellOptions": {"type": "color-background", "mode": "basic"}},
    }
    return Panel(
        "table",
        title,
        read,
        act,
        (Query(expr, instant=True, format="table"),),
        width,
        10,
        defaults,
        {"showHeader": True, "cellHeight": "sm"},
        ({"matcher": {"id": "byName", "options": corner}, "properties": plain},),
        (
            _sorted_by(column),
            _sorted_by(row),
            {
                "id": "groupingToMatrix",
                "options": {
                    "rowField": row,
                    "columnField": column,
                    "valueField": "Value",
                    "emptyValue": "null",
                },
            },
        ),
    )


def versions(title: str, read: str, act: str, *queries: Query, width: int = 12) -> Panel:
    """Return a lane per series with the number of a version, 0 shown as the base."""
    defaults = {
        "unit": "prefix:v",
        "color": {"mode": "continuous-BlPu"},
        "custom": {"fillOpacity": 70, "lineWidth": 1},
        "mappings": _mappings({"0": "base"}),
    }
    options = {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.8,
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return Panel("state-timeline", title, read, act, queries, width, 10, defaults, options)


def buckets(title: str, read: str, act: str, expr: str, *, unit: str, width: int = 8) -> Panel:
    """Return a histogram over time as a heat map; ``expr`` keeps the label ``le``."""
    options = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "reverse": False},
        "cellGap": 1,
        "yAxis": {"unit": unit, "axisPlacement": "left"},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False},
        "legend": {"show": True},
    }
    query = Query(expr, "{{le}}", format="heatmap")
    return Panel("heatmap", title, read, act, (query,), width, options=options)


def _sorted_by(name: str) -> dict[str, Any]:
    return {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": name}]}}


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _bound_line(ref: str) -> dict[str, Any]:
    return {
        "matcher": {"id": "byFrameRefID", "options": ref},
        "properties": [
            {"id": "color", "value": {"mode": "fixed", "fixedColor": RED}},
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
            {"id": "custom.fillOpacity", "value": 0},
        ],
    }


def _thresholds(steps: Steps) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def _mappings(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    options = {value: {"text": text, "index": index} for index, (value, text) in enumerate(texts.items())}
    return [{"type": "value", "options": options}] if options else []
