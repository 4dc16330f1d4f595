"""Gather what runs left behind: means and spreads over seeds, as a Markdown table and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapter_store.durable import write_durably
from benchmarks.forgetting.records import Record, read_records


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table: its title, how to read it from a run, and how to show it."""

    title: str
    read: Callable[[Record], float | None]
    scale: float
    digits: int


def _measure(name: str) -> Callable[[Record], float | None]:
    return lambda record: record["measures"].get(name)


def _mean_leak(record: Record) -> float | None:
    return statistics.mean(record["leak"].values()) if record["leak"] else None


def _mean_served(record: Record) -> float | None:
    """Return the mean time from submitting a job to its version being served."""
    return statistics.mean(record["served_seconds"]) if record["served_seconds"] else None


COLUMNS: Final = (
    Column("average accuracy", _measure("average_accuracy"), 100, 1),
    Column("mean over stages", _measure("mean_average_accuracy"), 100, 1),
    Column("forgetting", _measure("forgetting"), 100, 1),
    Column("backward transfer", _measure("backward_transfer"), 100, 1),
    Column("new task", _measure("new_task_accuracy"), 100, 1),
    Column("leak %", _mean_leak, 100, 1),
    Column("retention", lambda record: record["retention"], 1, 3),
    Column("parameters, M", lambda record: record["trained_parameters"] / 1e6, 1, 2),
    Column("training s", lambda record: record["train_seconds"], 1, 0),
    Column("job s", _mean_served, 1, 0),
    Column("peak GiB", lambda record: record["peak_bytes"] / 2**30, 1, 1),
)


def by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group runs by their method."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["method"], []).append(record)
    return groups


def as_markdown(records: Sequence[Record]) -> str:
    """Lay all methods out as a table: mean, and the standard deviation over seeds if there are several."""
    lines = [
        "| method | " + " | ".join(column.title for column in COLUMNS) + " | seeds |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for method, runs in by_method(records).items():
        cells = [_cell([column.read(run) for run in runs], column.scale, column.digits) for column in COLUMNS]
        lines.append(f"| {method} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


def final_scores(records: Sequence[Record]) -> str:
    """Lay out what each method ends with on every task, in percent."""
    tasks = list(dict.fromkeys(task for record in records for task in record["stages"]))
    lines = ["| method | " + " | ".join(tasks) + " |", "|---|" + "---:|" * len(tasks)]
    for method, runs in by_method(records).items():
        ends = [run["rows"][-1] if run["rows"] else run["base"] for run in runs]
        cells = [_cell([end.get(task) for end in ends], 100, 1) for task in tasks]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return mean and spread of every column by method."""
    table: dict[str, dict[str, Any]] = {}
    for method, runs in by_method(records).items():
        table[method] = {"seeds": [run["seed"] for run in runs]}
        for column in COLUMNS:
            values = [value for run in runs if (value := column.read(run)) is not None]
            spread = statistics.stdev(values) if len(values) > 1 else None
            table[method][column.title] = {"mean": statistics.mean(values) if values else None, "sd": spread}
    return table


def _cell(values: Sequence[float | None], scale: float, digits: int) -> str:
    known = [scale * value for value in values if value is not None]
    if not known:
        return "–"
    text = f"{statistics.mean(known):.{digits}f}"
    return text if len(known) < 2 else f"{text} ± {statistics.stdev(known):.{digits}f}"


def write_report(folder: Path) -> str:
    """Write ``report.json`` and ``report.md`` of all runs under a folder; return the tables."""
    records = read_records(folder)
    table = (
        f"{as_markdown(records)}\n\nAccuracy of each task at the end, in percent:\n\n{final_scores(records)}"
    )
    machines = ", ".join(sorted({record["machine"] for record in records}))
    held_back = [f"- {r['method']}, seed {r['seed']}: {why}" for r in records for why in r["held_back"]]
    notes = "\n\nThe gate would have held back:\n" + "\n".join(held_back) if held_back else ""
    title = f"Stream and scale: {folder.name}"
    shared = [record for record in records if record["beside"]]
    crowd = f" {len(shared)} of {len(records)} runs shared the machine with others." if shared else ""
    text = f"# {title}\n\nMeasured on: {machines}.{crowd}\n\n{table}{notes}\n"
    write_durably(folder / "report.md", text.encode())
    content = {"title": title, "machines": machines, "summary": summary(records), "runs": records}
    write_durably(folder / "report.json", (json.dumps(content, indent=2) + "\n").encode())
    return table
