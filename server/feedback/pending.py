"""Corrections that wait, on disk: kept before anybody hears yes, and there after a kill.

::

    <home>/feedback/<task>/
        open/<key>.json        a correction; written after its picture, replaced by a later one
        open/<sha>.picture     the file of a picture, named by the sha256 of its pixels
        batch-<id>/            what was open, closed by a rename; becomes one job
        deliveries.json        the last jobs, with the corrections that they learn

A closed batch never changes, and its name is the Idempotency-Key of its job. So whatever happens between the
job's acceptance and the folder's removal, handing the batch in again gives the same job.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapter_store.durable import make_folder, sync_folder, write_durably
from adapter_store.errors import InputError, UnavailableError
from adapter_store.names import check_task_name
from server.feedback.corrections import Correction
from server.logs import log

MOST_WAITING = 1024
"""Corrections of one task that wait while Redis is away."""
MOST_TASKS = 256
_OPEN, _BATCH, _DONE, _ASIDE = "open", "batch-", "done-", "refused-"
_DELIVERIES = "deliveries.json"
_DELIVERIES_KEPT = 8


class FeedbackFull(UnavailableError):
    """Refuse a correction because too many wait already."""

    code = "feedback_full"
    retry_after_seconds = 30


@dataclass(slots=True)
class _Waiting:
    """What waits of one task: by key, the batches by name, oldest first."""

    open: dict[str, Correction] = field(default_factory=dict)
    batches: dict[str, dict[str, Correction]] = field(default_factory=dict)
    deliveries: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    def closed(self, key: str) -> Correction | None:
        """Return the correction of this key in the newest closed batch that has one."""
        return next((batch[key] for batch in reversed(self.batches.values()) if key in batch), None)

    def all(self) -> list[Correction]:
        """Return every correction, those of the oldest batch first."""
        return [one for group in (*self.batches.values(), self.open) for one in group.values()]


@dataclass(frozen=True, slots=True)
class Batch:
    """A closed batch: its name, its corrections by key, and whether an earlier process may have sent it."""

    name: str
    corrections: Mapping[str, Correction]
    left_over: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How many corrections of a task wait, since when the oldest does, and the job that was sent last."""

    count: int
    open: int
    oldest: float | None
    last_job: str | None


class PendingStore:
    """Keep the corrections of one home; its methods block and may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._tasks: dict[str, _Waiting] = {}
        self._left_over: set[str] = set()
        if folder.is_dir():
            self._load()

    def tasks(self) -> list[str]:
        """Return the tasks that corrections wait for or were sent for."""
        with self._lock:
            return sorted(self._tasks)

    def standing(self, task: str) -> Standing:
        """Return how it stands with a task."""
        with self._lock:
            waiting = self._tasks.get(task, _Waiting())
            every = waiting.all()
            oldest = min((one.since for one in every), default=None)
            last = waiting.deliveries[-1][0] if waiting.deliveries else None
            return Standing(len(every), len(waiting.open), oldest, last)

    def oldest_open(self, task: str) -> float | None:
        """Return since when the oldest correction waits that is in no closed batch."""
        with self._lock:
            waiting = self._tasks.get(task, _Waiting())
            return min((one.since for one in waiting.open.values()), default=None)

    def keep(
        self, task: str, correction: Correction, picture: bytes, *, close_at: int = MOST_WAITING
    ) -> bool:
        """Write a correction durably; return False if the same one waits already.

        Args:
            task: its name.
            correction: what to keep.
            picture: the picture's file.
            close_at: with so many, what is open becomes a batch.

        Raises:
            FeedbackFull: too many wait.
        """
        with self._lock:
            waiting = self._tasks.get(task) or self._with_room()
            old = waiting.open.get(correction.key)
            latest = old or waiting.closed(correction.key)
            if latest is not None and latest.id == correction.id:
                return False
            if len(waiting.all()) >= MOST_WAITING:
                text = f"{MOST_WAITING} corrections of {task} wait already; try again once they are queued"
                raise FeedbackFull(text)
            folder = self._folder / task / _OPEN
            make_folder(folder)
            place = folder / f"{correction.picture}.picture"
            if not place.exists():
                write_durably(place, picture)
            kept = correction if old is None else replace(correction, since=old.since)
            write_durably(folder / f"{correction.key}.json", kept.line())
            waiting.open[correction.key] = kept
            self._tasks[task] = waiting
            if len(waiting.open) >= close_at:
                self._close(task, waiting)
            return True

    def close(self, task: str) -> None:
        """Make what is open a batch of its own; nothing happens without any."""
        with self._lock:
            waiting = self._tasks.get(task)
            if waiting is not None and waiting.open:
                self._close(task, waiting)

    def batches(self, task: str) -> list[Batch]:
        """Return the closed batches of a task, oldest first."""
        with self._lock:
            waiting = self._tasks.get(task, _Waiting())
            return [
                Batch(name, dict(found), name in self._left_over) for name, found in waiting.batches.items()
            ]

    def picture(self, task: str, batch: Batch, correction: Correction) -> bytes:
        """Return the picture's file."""
        return (self._folder / task / batch.name / f"{correction.picture}.picture").read_bytes()

    def delivered(self, task: str, batch: Batch, job: str) -> None:
        """Forget a batch whose job is accepted; what it held is remembered by id."""
        with self._lock:
            waiting = self._tasks[task]
            ids = frozenset(one.id for one in batch.corrections.values())
            deliveries = [*waiting.deliveries, (job, ids)][-_DELIVERIES_KEPT:]
            content = [{"job": known, "ids": sorted(held)} for known, held in deliveries]
            write_durably(self._folder / task / _DELIVERIES, json.dumps(content).encode())
            waiting.deliveries = deliveries
            self._take_out(task, batch.name, _DONE)
        shutil.rmtree(self._folder / task / f"{_DONE}{batch.name}", ignore_errors=True)

    def set_aside(self, task: str, batch: Batch) -> None:
        """Keep a batch that can never become a job out of the way, for somebody to look at."""
        with self._lock:
            self._take_out(task, batch.name, _ASIDE)

    def job_of(self, task: str, identity: str) -> str | None:
        """Return the last job that a correction was sent with; None if it waits (again) or is not known."""
        with self._lock:
            waiting = self._tasks.get(task, _Waiting())
            if any(one.id == identity for one in waiting.all()):
                return None
            return next((job for job, ids in reversed(waiting.deliveries) if identity in ids), None)

    def is_waiting(self, task: str, identity: str) -> bool:
        """Tell whether a correction waits to be sent."""
        with self._lock:
            return any(one.id == identity for one in self._tasks.get(task, _Waiting()).all())

    def _close(self, task: str, waiting: _Waiting) -> None:
        name = f"{_BATCH}{time.time_ns():016x}{uuid.uuid4().hex[:16]}"
        folder = self._folder / task
        os.rename(folder / _OPEN, folder / name)
        waiting.batches[name], waiting.open = waiting.open, {}
        sync_folder(folder)

    def _with_room(self) -> _Waiting:
        """Return a place for one more task; the list of what was sent of an idle one may go for it."""
        if len(self._tasks) >= MOST_TASKS:
            idle = next((name for name, known in self._tasks.items() if not known.all()), None)
            if idle is None:
                raise FeedbackFull(f"corrections of {MOST_TASKS} tasks wait already; try again in a moment")
            del self._tasks[idle]
        return _Waiting()

    def _take_out(self, task: str, name: str, prefix: str) -> None:
        folder = self._folder / task
        os.rename(folder / name, folder / f"{prefix}{name}")
        sync_folder(folder)
        self._tasks[task].batches.pop(name, None)
        self._left_over.discard(name)

    def _load(self) -> None:
        for folder in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            try:
                task = check_task_name(folder.name)
            except InputError:
                continue
            waiting = _Waiting(_read(folder / _OPEN), {}, _deliveries(folder / _DELIVERIES))
            for path in sorted(folder.iterdir()):
                if path.name.startswith(_BATCH):
                    waiting.batches[path.name] = _read(path)
                    self._left_over.add(path.name)
                elif path.name.startswith(_DONE):
                    shutil.rmtree(path, ignore_errors=True)
            if waiting.all() or waiting.deliveries:
                self._tasks[task] = waiting


def _read(folder: Path) -> dict[str, Correction]:
    """Return the corrections of a folder by key; a file that cannot be read is logged and left alone."""
    found = []
    for path in folder.glob("*.json") if folder.is_dir() else ():
        try:
            found.append(Correction.of(json.loads(path.read_bytes())))
        except (ValueError, TypeError, OSError) as error:
            log("a correction cannot be read", logging.WARNING, file=path.name, reason=str(error)[:200])
    return {one.key: one for one in sorted(found, key=lambda one: (one.since, one.key))}


def _deliveries(path: Path) -> list[tuple[str, frozenset[str]]]:
    try:
        return [(item["job"], frozenset(item["ids"])) for item in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        log("the list of sent corrections cannot be read", logging.WARNING, reason=str(error)[:200])
        return []
