"""``strata dataset check``: the report on a data set, without a server and before anything is trained."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from adapter_store.datasets import Report
from adapter_store.errors import InputError
from adapter_store.names import check_task_name
from adapter_store.texts import counted
from server.cli.arguments import add_verb
from server.cli.output import clean, print_json, stderr, stdout
from server.cli.wording import Words, words_of

EXIT_FAULTY = 2
PATIENCE_SECONDS = 2.0
_SHOWN_ANSWERS = 6


def add_verbs(verbs: Any) -> None:
    """Add ``dataset``."""
    verb = add_verb(verbs, "dataset", "check a data set without a server: every fault, and figures", _check)
    verb.epilog = (
        "The report is that of POST /v1/datasets:validate. What other tasks are measured on is read from "
        "STRATA_HOME. Exit status: 0 it can be taught, 2 it has faults."
    )
    verb.add_argument("action", choices=("check",), help="what to do with it")
    verb.add_argument(
        "file", type=Path, metavar="FILE", help="JSON, JSONL, CSV, parquet, zip, tar, or a folder"
    )
    verb.add_argument("--task", metavar="NAME", help="the task that it is for")
    verb.add_argument("--question", metavar="TEXT", help="asked where the data has none")


def _check(args: argparse.Namespace) -> int:
    from adapter_store.settings import read_settings
    from server.datasets.opening import open_datasets
    from server.settings import GatewaySettings

    task = None if args.task is None else check_task_name(args.task)
    settings = read_settings(GatewaySettings, (), program="strata dataset")
    with tempfile.TemporaryDirectory(prefix="strata-check-") as scratch, _told(quiet=args.json) as bar:
        datasets = open_datasets(settings, Path(scratch))
        try:
            report = datasets.validate(args.file, question=args.question, task=task, tell=bar.tell)
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(f"cannot read {args.file}: {error.strerror}", param="file") from None
    words = words_of(args.parser)
    if args.json:
        print_json(_worded(report, words).to_dict())
    else:
        _show(str(args.file), report, words)
    return 0 if report.ok else EXIT_FAULTY


def _worded(report: Report, words: Words) -> Report:
    """Return the report with its reasons as the text form has them; fields keep their names."""
    faults = tuple(replace(fault, reason=words(fault.reason, None)) for fault in report.faults)
    return replace(report, faults=faults)


class _Bar:
    """Show what is under way and the time left, once it takes longer than a moment."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._began = time.monotonic()
        self._title = ""
        self._row: TaskID | None = None

    def tell(self, title: str, done: int, total: int) -> None:
        """Note how far it is; ``total`` 0: not known."""
        if self._progress is None or time.monotonic() - self._began < PATIENCE_SECONDS:
            return
        if self._row is None:
            self._progress.start()
        if self._row is None or title != self._title:
            self._title = title
            if self._row is not None:
                self._progress.remove_task(self._row)
            self._row = self._progress.add_task(title, total=total or None)
            if not stderr.is_terminal:
                stderr.print(clean(title))
        self._progress.update(self._row, completed=done)


@contextmanager
def _told(*, quiet: bool) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    progress = None if quiet else Progress(*columns, console=stderr, transient=True)
    try:
        yield _Bar(progress)
    finally:
        if progress is not None:
            progress.stop()


def _show(name: str, report: Report, words: Words) -> None:
    stdout.print(f"[bold]{clean(name)}[/]  {clean(report.format)}")
    for title, text in _facts(report) if report.examples else ():
        stdout.print(f"  {title:10} {clean(text)}")
    for warning in report.warnings:
        stdout.print(f"  [yellow]warning[/]    {clean(str(warning))}")
    for fault in report.faults:
        stdout.print(f"  [red]fault[/]      {clean(words(str(fault), None))}")
    if report.truncated_faults:
        stdout.print(f"  [red]fault[/]      and {report.truncated_faults} more")
    if report.ok:
        stdout.print("[green]it can be taught[/]")
    else:
        count = len(report.faults) + report.truncated_faults
        stdout.print(f"[red]it cannot be taught[/]: {counted(count, 'fault')}")


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    yield (
        "examples",
        f"{report.examples:,} with {counted(report.turns, 'answer')}, {report.duplicates:,} of them repeated",
    )
    yield "pictures", f"{report.images:,}, {report.image_bytes / 2**20:,.1f} MiB"
    common = ", ".join(f"{text} {count:,}" for text, count in report.answer_histogram[:_SHOWN_ANSWERS])
    least = "at least " if report.answers_truncated else ""
    yield "answers", f"{least}{report.answers:,} different: {common}" if common else "none"
    for title, lengths in (("question", report.question_lengths), ("answer", report.answer_lengths)):
        text = f"{report.length_unit}: median {lengths.median}, 95 % up to {lengths.p95}"
        yield title, f"{text}, longest {lengths.longest}"
    split = report.split
    if split.given:
        parts = f"{counted(split.test_examples, 'example')}, {counted(split.test_images, 'picture')}"
        yield "held out", f"{parts}, as the data says"
    else:
        yield "held out", "chosen by picture when it is learned; the data names no test part"
