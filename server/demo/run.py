"""Run the demo from an empty home to two learned tasks, with a client that never stops asking."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from adapter_store.errors import StrataError
from server.cli.client import Client
from server.cli.output import clean, percent, print_json, stderr, stdout
from server.demo.asking import BackgroundClient, Question, score
from server.demo.picture import draw_matrix
from server.demo.promises import Outcome, Stage
from server.demo.report import show_next_steps, show_outcome
from server.demo.service import Service
from server.demo.teaching import teach
from server.launch.base import assemble_embedded_base

MODEL = "strata"


@dataclass(frozen=True, slots=True)
class Lesson:
    """Hold one task of the demo: the data set to send and held-out questions that are not in it."""

    task: str
    file: Path
    held_out: Sequence[Question]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Say how the demo runs.

    Attributes:
        home: Folder to use and keep; None uses a temporary one.
        port: Port of the gateway; None takes 8000 or a free one.
        out: Folder for the pictures that the demo writes.
        pictures: Held-out questions per task.
        train: Examples per task; None takes the number that the promises were made with.
        concurrency: Questions under way at once while scoring.
        stay: Whether the server stays up at the end.
        as_json: Write one JSON value instead of tables.
    """

    home: Path | None
    port: int | None
    out: Path
    pictures: int
    train: int | None
    concurrency: int
    stay: bool
    as_json: bool


def run_demo(options: DemoOptions, lessons: Sequence[Lesson] | None = None) -> int:
    """Run the demo and return 0 only if every promise was kept.

    Args:
        options: How to run it.
        lessons: Tasks to learn in this order; None takes digits and animals.
    """
    console = stderr if options.as_json else stdout
    began = time.monotonic()
    with _sigterm_interrupts(), tempfile.TemporaryDirectory(prefix="strata-lessons-") as scratch:
        assemble_embedded_base(os.environ.get("STRATA_BASE", ""))
        if lessons is None:
            lessons = _default_lessons(Path(scratch), options)
        with Service(options.home, options.port) as service:
            demo = _Demo(options, service, lessons, console)
            outcome = demo.run(began)
            if options.as_json:
                print_json(outcome.to_dict())
            else:
                show_outcome(outcome, console)
            if options.stay:
                _stay(demo, service, options, console)
    return 0 if outcome.kept() else 1


class _Demo:
    def __init__(
        self, options: DemoOptions, service: Service, lessons: Sequence[Lesson], console: Console
    ) -> None:
        self._options = options
        self._service = service
        self.lessons = lessons
        self._console = console
        self._client = Client(service.url, timeout_seconds=120.0)
        self._outcome = Outcome(tasks=tuple(lesson.task for lesson in lessons))

    def run(self, began: float) -> Outcome:
        """Return what was measured; a lesson that fails ends the run but not the report."""
        outcome = self._outcome
        outcome.home, outcome.url = str(self._service.home), self._service.url
        with self._console.status("starting gateway, trainer and Redis") as status:
            self._service.wait_until_ready(
                lambda s, why: status.update(f"starting: {clean(why)} ({s:.0f} s)")
            )
        pids = ", ".join(f"{name} {pid}" for name, pid in sorted(self._service.pids().items()))
        self._console.print(f"up at {self._service.url}   processes: {pids}")
        outcome.stages.append(Stage("base", "base", self._ask_all("before")))
        mixed = [
            question for group in zip(*(x.held_out for x in self.lessons), strict=False) for question in group
        ]
        background = BackgroundClient(self._service.url, MODEL, mixed)
        background.start()
        try:
            for lesson in self.lessons:
                self._teach(lesson)
        except StrataError as error:
            self._console.print(f"[bold red]{clean(error.message)}[/]")
            self._show_logs()
        finally:
            outcome.during = background.stop()
            outcome.tally.merge(outcome.during)
        outcome.picture = str(self._draw())
        outcome.peak_memory_bytes = self._service.peak_memory_bytes()
        outcome.total_seconds = time.monotonic() - began
        return outcome

    def _teach(self, lesson: Lesson) -> None:
        self._service.check()
        drawn = None if self._options.as_json else self._console
        taught = teach(self._client, lesson.file, lesson.task, lesson.held_out[0], MODEL, drawn)
        self._outcome.versions.append(taught.version)
        matrix = self._client.get("/v1/evaluations/matrix")
        self._outcome.stages.append(
            Stage(
                lesson.task,
                taught.version,
                self._ask_all(f"after {lesson.task}"),
                served_seconds=taught.served_seconds,
                swap_seconds=taught.swap_seconds,
                phases=taught.phases,
                leak={
                    str(k): float(v) for k, v in (matrix.get("routing_leak") or {}).items() if v is not None
                },
            )
        )

    def _ask_all(self, title: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for lesson in self.lessons:
            with self._console.status(f"asking {len(lesson.held_out)} questions of {lesson.task}"):
                found[lesson.task], _ = score(
                    self._service.url,
                    MODEL,
                    lesson.held_out,
                    concurrency=self._options.concurrency,
                    tally=self._outcome.tally,
                )
        words = "   ".join(f"{task} {percent(value)}" for task, value in found.items())
        self._console.print(f"{title + ':':16} {words}")
        return found

    def _draw(self) -> Path:
        stages = [stage.name for stage in self._outcome.stages]
        tasks = self._outcome.tasks
        rows = [[stage.accuracy.get(task) for task in tasks] for stage in self._outcome.stages]
        return draw_matrix(self._options.out / "accuracy-matrix.png", tasks, stages, rows)

    def _show_logs(self) -> None:
        for path in sorted((self._service.home / "logs").glob("*.log")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            self._console.print(f"[bold]{path.name}[/]")
            self._console.print("\n".join(clean(f"  {line}") for line in lines))


def _default_lessons(scratch: Path, options: DemoOptions) -> list[Lesson]:
    from server.demo.tasks import demo_lessons

    return demo_lessons(scratch, options.pictures, train=options.train)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the demo the way Ctrl-C does: everything is shut down in order."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous: Any = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stay(demo: _Demo, service: Service, options: DemoOptions, console: Console) -> None:
    example = demo.lessons[0].held_out[0]
    picture = options.out / f"{demo.lessons[0].task}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(example.picture_png)
    show_next_steps(service.url, str(picture), example.text, console, temporary=options.home is None)
    try:
        service.wait()
    except KeyboardInterrupt:
        console.print("shutting down in order")
