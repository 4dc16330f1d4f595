"""Say at the end what was measured, whether every promise was kept, and where to look next."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from server.cli.output import clean, duration, percent
from server.demo.asking import Tally
from server.demo.promises import Outcome


def show_outcome(outcome: Outcome, console: Console) -> None:
    """Write accuracy, costs, requests and promises."""
    console.print()
    console.print(_accuracy(outcome))
    console.print(_costs(outcome))
    console.print(f"requests              {_requests(outcome.tally)}")
    console.print(f"  while it learned    {_requests(outcome.during)}")
    for reason in outcome.tally.reasons:
        console.print(f"  [red]{clean(reason)}[/]")
    if outcome.picture:
        console.print(f"picture of the matrix {clean(outcome.picture)}")
    console.print(f"largest memory        {_memory(outcome.peak_memory_bytes)}")
    console.print(f"all in all            {duration(outcome.total_seconds)}")
    console.print()
    for promise in outcome.promises():
        mark = "[green]kept  [/]" if promise.kept else "[red]BROKEN[/]"
        console.print(f"  {mark}  {clean(promise.text):46} {clean(promise.measured)}")


def _accuracy(outcome: Outcome) -> Table:
    table = Table(title="right answers on held-out pictures, asked over HTTP", title_justify="left")
    table.add_column("after stage")
    table.add_column("version")
    for task in outcome.tasks:
        table.add_column(task, justify="right")
    for stage in outcome.stages:
        cells = [percent(stage.accuracy.get(task)) for task in outcome.tasks]
        table.add_row("before" if stage.name == "base" else stage.name, stage.version, *cells)
    table.add_section()
    table.add_row("forgetting", "", f"{100 * outcome.forgetting():.1f} points")
    return table


def _costs(outcome: Outcome) -> Table:
    table = Table(title="what it took", title_justify="left")
    for column in ("learned", "POST to served", "train", "evaluate", "swap", "routing leak"):
        table.add_column(column, justify="left" if column in {"learned", "routing leak"} else "right")
    for stage in outcome.stages[1:]:
        leak = ", ".join(f"{task} {percent(value)}" for task, value in stage.leak.items())
        table.add_row(
            stage.name,
            duration(stage.served_seconds),
            duration(stage.phases.get("train")),
            duration(stage.phases.get("evaluate")),
            "-" if stage.swap_seconds is None else f"{1000 * stage.swap_seconds:.0f} ms",
            leak or "-",
        )
    return table


def _requests(tally: Tally) -> str:
    middle, late = tally.latency_seconds(0.5), tally.latency_seconds(0.99)
    return f"{tally.sent} sent, {tally.failed} failed, p50 {middle:.2f} s, p99 {late:.2f} s"


def _memory(peaks: dict[str, int]) -> str:
    if not peaks:
        return "-"
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in sorted(peaks.items()))
    return f"{sum(peaks.values()) / 1e9:.2f} GB ({parts})"


def show_next_steps(url: str, picture: str, question: str, console: Console, *, temporary: bool) -> None:
    """Write what a user may do with the server that is still up."""
    console.print(f"\n[bold green]the server stays up at {url}[/]")
    console.print(f"  ask       strata chat --url {url} --image {clean(picture)} {clean(repr(question))}")
    console.print("  before    the same with --model strata@base")
    console.print(f"  teach     strata submit --url {url} YOUR_DATA --task NAME --wait")
    console.print(f"  look      {url}/docs   {url}/metrics   strata matrix --url {url}")
    console.print(
        "  end       Ctrl-C"
        + (", which also removes what it learned (--home keeps it)\n" if temporary else "\n")
    )
