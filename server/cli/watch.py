"""Follow a training job and show how far it is: phases, loss, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import takewhile
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adapter_store.errors import StrataError
from server.cli.client import Client, ServerAway
from server.cli.output import clean, duration, stderr

T = TypeVar("T")
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_POLL_SECONDS = 2.0
_EVENTS_AT_ONCE = 100
_NOTE_SECONDS = 5.0
_AGAIN_SECONDS = 2.0
_PATIENCE_SECONDS = 300.0
_WORDS = {
    "queued": "in the queue",
    "validate": "validate the data",
    "encode": "encode pictures and questions",
    "decide": "retrain or expand",
    "keys": "place the keys",
    "train": "train the increments",
    "evaluate": "evaluate every task",
    "gate": "forgetting gate",
    "publish": "publish and swap",
}


class LostSight(StrataError):
    """Report a job whose end nobody can tell of now; it may go on all the same."""

    code = "lost_sight"


def follow(
    client: Client, job_id: str, tell: Callable[[str], None] = stderr.print
) -> Iterator[tuple[dict, list[dict]]]:
    """Yield `(job, new events)` until the job has ended; the last job yielded is the final one.

    Between two looks at the job its stream of events is read, one request however long it takes. A server
    without such a stream is asked every two seconds. A gateway that restarts ends no job: while it is away it
    is asked again, and `tell` is given a sentence. A stream that ends while the job goes on is read again
    two seconds later, whatever it said.

    Raises:
        LostSight: The gateway was away for too long.
        StrataError: As `Client.get` raises.
    """
    after: str | None = None
    was_streamed = False
    while True:
        job, events = _looked(client, job_id, after, tell)
        yield job, events
        if job["status"] in TERMINAL:
            return
        after = events[-1]["id"] if events else after
        if was_streamed:
            time.sleep(_POLL_SECONDS)
        was_streamed = True
        for event in _streamed(client, job_id, after):
            is_news = "message" in event  # not so when nothing comes, and when the job has ended
            if is_news:
                after = event["id"]
            yield job, [event] if is_news else []


def _streamed(client: Client, job_id: str, after: str | None) -> Iterator[dict[str, Any]]:
    """Yield what the stream of events says; where it breaks off, or there is none, the next look says why."""
    with suppress(StrataError):
        yield from client.events(_events_of(job_id), after)


def _events_of(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/events"


def patiently(call: Callable[[], T], tell: Callable[[str], None], *, meanwhile: str, lost: str) -> T:
    """Return what `call` returns, however long the gateway takes to restart.

    Args:
        call: What asks the gateway; it is called again while that is away.
        tell: Given a sentence when the gateway goes, and when it is back.
        meanwhile: What is true while nobody answers.
        lost: What to say when the gateway was away for too long.

    Raises:
        LostSight: The gateway was away for too long.
        StrataError: As `call` raises.
    """
    away_since: float | None = None
    while True:
        try:
            found = call()
        except ServerAway as error:
            if away_since is None:
                away_since = time.monotonic()
                tell(f"{clean(error.message)}; {meanwhile}, asking again for {duration(_PATIENCE_SECONDS)}")
            elif time.monotonic() - away_since > _PATIENCE_SECONDS:
                raise LostSight(f"{error.message}; {lost}") from None
            time.sleep(_AGAIN_SECONDS)
        else:
            if away_since is not None:
                tell("the server answers again")
            return found


def _looked(
    client: Client, job_id: str, after: str | None, tell: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the job and its new events, however long the gateway takes to restart."""
    return patiently(
        lambda: (client.get(f"/v1/fine_tuning/jobs/{job_id}"), new_events(client, job_id, after)),
        tell,
        meanwhile="the job may go on",
        lost=f"whether job {job_id} goes on is not known: look again with: strata jobs {job_id} --wait",
    )


def new_events(client: Client, job_id: str, after: str | None) -> list[dict[str, Any]]:
    """Return the events behind `after`, oldest first; the server lists the newest first, as OpenAI does."""
    found: list[dict[str, Any]] = []
    before: str | None = None
    while True:
        page = client.get(_events_of(job_id), after=before, limit=_EVENTS_AT_ONCE)
        found += takewhile(lambda event: event["id"] != after, page["data"])
        if not page.get("has_more") or not page["data"] or found[-1:] != page["data"][-1:]:
            return found[::-1]
        before = page["data"][-1]["id"]


def last_events(client: Client, job_id: str, count: int) -> list[dict[str, Any]]:
    """Return up to `count` events of a job, those that came last, oldest first."""
    return client.get(_events_of(job_id), limit=count)["data"][:count][::-1]


class JobProgress:
    """Fold the events of a job into what a person wants to see."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.phases: dict[str, float] = {"queued": time.monotonic()}
        self.ended_at: float | None = None
        self.metrics: dict[str, Any] = {}
        self.notes: list[str] = []
        self.status = "queued"

    @property
    def phase(self) -> str:
        """Return the phase that runs now."""
        return next(reversed(self.phases))

    def update(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        """Take in the newest job record and the events since the last call."""
        for event in events:
            data = event.get("data") or {}
            if event.get("type") == "phase":
                self._enter(str(data.get("phase") or event.get("message")))
            elif event.get("type") == "metrics" or "prepared" in data:
                self.metrics = {**self.metrics, **data}
            else:
                self.notes.append(str(event.get("message", "")))
        if job.get("phase"):
            self._enter(str(job["phase"]))
        self.status = str(job["status"])
        if self.status in TERMINAL and self.ended_at is None:
            self.ended_at = time.monotonic()

    def _enter(self, phase: str) -> None:
        if phase not in self.phases:
            self.phases[phase] = time.monotonic()

    def seconds(self, phase: str) -> float:
        """Return how long a phase took, or has taken so far."""
        names = list(self.phases)
        after = names.index(phase) + 1
        end = self.phases[names[after]] if after < len(names) else self.ended_at or time.monotonic()
        return end - self.phases[phase]

    def training_line(self) -> str:
        """Return loss, step and time left in one line; empty before the first step."""
        parts = []
        step, total = self.metrics.get("step"), self.metrics.get("total_steps")
        if step is not None and total:
            parts.append(f"step {step}/{total}")
        elif self.metrics.get("to_prepare"):
            parts.append(f"{self.metrics['prepared']}/{self.metrics['to_prepare']} examples prepared")
        if self.metrics.get("loss") is not None:
            parts.append(f"loss {float(self.metrics['loss']):.3f}")
        if self.metrics.get("eta_seconds") is not None and self.ended_at is None:
            parts.append(f"{duration(float(self.metrics['eta_seconds']))} left")
        return "  ".join(parts)

    def line(self) -> str:
        """Return the state in one line, for terminals that cannot redraw."""
        detail = self.training_line() if self.phase == "train" else ""
        return f"{self.title}: {_WORDS.get(self.phase, self.phase)} {detail}".rstrip()

    def __rich__(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_row("", Text(self.title, style="bold"))
        for name in self.phases:
            running = name == self.phase and self.ended_at is None
            mark = Text("›", style="yellow") if running else Text("✓", style="green")
            if name == self.phase and self.status in {"failed", "cancelled"}:
                mark = Text("✗", style="red")
            grid.add_row(
                mark, _WORDS.get(name, clean(name)), duration(self.seconds(name)), self._detail(name)
            )
        return grid

    def _detail(self, name: str) -> RenderableType:
        if name != "train" or not self.metrics.get("total_steps"):
            return ""
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(
            total=float(self.metrics["total_steps"]), completed=float(self.metrics.get("step", 0)), width=24
        )
        row.add_row(bar, self.training_line())
        return row


class _Lines(AbstractContextManager[None]):
    """Stand in for Live where the output is not a terminal: one line per phase, one every few seconds."""

    def __init__(self, progress: JobProgress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._phase = ""
        self._noted_at = 0.0

    def __exit__(self, *_: object) -> None:
        return None

    def refresh(self) -> None:
        """Write a line if there is something new to say."""
        now = time.monotonic()
        if self._progress.phase != self._phase or now - self._noted_at > _NOTE_SECONDS:
            self._phase, self._noted_at = self._progress.phase, now
            self._console.print(clean(self._progress.line()))


def show_job(
    client: Client,
    job_id: str,
    title: str,
    console: Console | None,
) -> tuple[dict[str, Any], JobProgress]:
    """Follow a job to its end, drawing its progress.

    Args:
        client: Connection to the gateway.
        job_id: The job.
        title: Heading of the display.
        console: Where to draw; None draws nothing.

    Returns:
        The final job record and the progress that was folded from its events.

    Raises:
        LostSight: The gateway was away for too long.
        StrataError: As `Client.get` raises.
    """
    progress = JobProgress(title)
    if console is None:
        display: Any = _Lines(progress, Console(quiet=True))
    elif console.is_terminal:
        display = Live(progress, console=console, refresh_per_second=4)
    else:
        display = _Lines(progress, console)
    job: dict[str, Any] = {}
    with display:
        for job, events in follow(client, job_id, tell=(console or stderr).print):
            progress.update(job, events)
            display.refresh()
    return job, progress
