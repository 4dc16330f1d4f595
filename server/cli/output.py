"""Write results for people or, with ``--json``, for programs: one JSON value on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

_UNBOUNDED = 100_000
stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Write one JSON value and a line end to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def print_error(message: str, *, code: str, as_json: bool) -> None:
    """Write an error: in words to standard error, or as ``{"error": {...}}`` to standard output."""
    if as_json:
        print_json({"error": {"message": message, "code": code}})
    else:
        stderr.print(f"[bold red]error:[/] {clean(message)}")


def clean(text: str) -> str:
    """Return text that cannot steer the terminal: no control characters, no markup of ours."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table whose cells are always whole, however narrow the output; None is shown as a dash."""
    result = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        result.add_column(column, no_wrap=True, overflow="ignore")
    for row in rows:
        result.add_row(*("-" if cell is None else clean(str(cell)) for cell in row))
    natural = stdout.options.update(max_width=_UNBOUNDED)
    result.width = Measurement.get(stdout, natural, result).maximum
    return result


def moment(seconds: float | None) -> str | None:
    """Return a Unix time as local time, ``2026-01-31 12:00:00``, or None."""
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    """Return a span of time for people: ``8 s``, ``2 min 05 s``, ``1 h 04 min``."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(ratio: float | None) -> str:
    """Return a ratio as ``93.5 %``; None as a dash."""
    return "-" if ratio is None else f"{100 * ratio:.1f} %"
