"""Corrections that wait, on disk: kept before anybody hears yes, and there after a kill.

Several gateways may share a home. Whoever writes holds ``<home>/feedback/.lock`` and reads the task's folder
again first; what is in memory is what was read last, and is only looked at.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adapter_store.durable import make_folder
from adapter_store.errors import InputError, StrataError, UnavailableError
from adapter_store.names import check_task_name
from server.feedback.corrections import Correction
from server.feedback.fates import Fate, refused
from server.feedback.folder import SENDING, TaskFolder, Waiting
from server.feedback.locking import LockTaken, locked, locked_aside
from server.logs import log

MOST_WAITING = 1024
"""Corrections of one task that wait while Redis is away."""
MOST_TASKS = 256
LOCK_SECONDS = 5.0
_LOCK = ".lock"


class FeedbackFull(UnavailableError):
    """Refuse a correction because too many wait already."""

    code = "feedback_full"
    retry_after_seconds = 30


@dataclass(frozen=True, slots=True)
class Batch:
    """A closed batch: its name, its corrections by key, and whether another process may have sent it."""

    name: str
    corrections: Mapping[str, Correction]
    left_over: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with a task.

    Attributes:
        count: corrections that wait.
        open: those of them that are in no closed batch.
        oldest: since when the oldest of all waits, in seconds since 1970.
        oldest_open: since when the oldest waits that is in no closed batch.
        last_job: the job that was sent last.
        refused: folders of what was set aside.
    """

    count: int
    open: int
    oldest: float | None
    oldest_open: float | None
    last_job: str | None
    refused: int


@dataclass(frozen=True, slots=True)
class Found:
    """Where a correction is: in a job, nowhere any more (``fate`` says why), or it waits to be sent."""

    job: str | None = None
    fate: Fate | None = None


class PendingStore:
    """Keep the corrections of one home.

    Whatever tells how it stands (``tasks`` to ``take_set_aside``) reads memory and never waits for a disk,
    so the event loop may call it; all others block and belong into a thread.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = threading.Lock()
        self._memory = threading.Lock()  # never held over input and output: the event loop takes it
        self._tasks: dict[str, Waiting] = {}
        self._own: set[str] = set()
        self._set_aside = 0
        try:
            self.refresh()
        except (StrataError, OSError) as error:  # the desk looks again
            log("waiting corrections cannot be read now", logging.WARNING, reason=str(error)[:200])

    def tasks(self) -> list[str]:
        """Return the tasks that corrections wait for, were sent for or were set aside of."""
        with self._memory:
            return sorted(self._tasks)

    def standing(self, task: str) -> Standing:
        """Return how it stands with a task."""
        waiting = self._known(task)
        every = waiting.all()
        return Standing(
            count=len(every),
            open=len(waiting.open),
            oldest=min((one.since for one in every), default=None),
            oldest_open=min((one.since for one in waiting.open.values()), default=None),
            last_job=waiting.deliveries[-1][0] if waiting.deliveries else None,
            refused=waiting.refused,
        )

    def batches(self, task: str) -> list[Batch]:
        """Return the closed batches of a task, oldest first."""
        found = self._known(task).batches
        return [Batch(name, batch, name not in self._own) for name, batch in found.items()]

    def job_of(self, task: str, identity: str) -> str | None:
        """Return the last job that a correction was sent with.

        None if it waits (again), is not known, or if a later answer to the same question waits or was sent.
        """
        return self._known(task).job_of(identity)

    def found(self, task: str, identity: str) -> Found | None:
        """Return where a correction is or how it ended; None: that is not known (any more)."""
        waiting = self._known(task)
        if waiting.holds(identity):
            return Found()
        fate = waiting.fates.by_id.get(identity)
        if fate is not None:
            return Found(fate=fate)
        job = waiting.sent_in(identity)
        return None if job is None else Found(job)

    def take_set_aside(self) -> int:
        """Return how many batches and files were set aside since the last call."""
        with self._memory:
            count, self._set_aside = self._set_aside, 0
            return count

    def sending(self, task: str, seconds: float) -> AbstractAsyncContextManager[None]:
        """Hold what lets one gateway at a time hand batches in; raise LockTaken after ``seconds``."""
        return locked_aside(self._folder / task / SENDING, seconds)

    def refresh(self, task: str | None = None) -> None:
        """Read again what other gateways may have changed, of one task or of all.

        Raises:
            LockTaken: another gateway was writing all the while.
            OSError: the folder of some task cannot be read; those of all others were. A single file that
                cannot be read is passed over.
        """
        if not self._folder.is_dir():
            return
        with self._writer():
            names = self._names()
            with self._memory:
                known = set(self._tasks)
            failed = None
            for name in names | known if task is None else (task,):
                try:
                    self._reread(name)
                except OSError as error:
                    failed = error
            if failed is not None:
                raise failed

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
            LockTaken: another gateway was writing all the while.
        """
        make_folder(self._folder)
        with self._writer():
            folder, waiting = self._of(task), self._reread(task)
            latest = waiting.newest(correction.key)
            if latest is not None and latest.id == correction.id:
                return False
            if len(waiting.all()) >= MOST_WAITING:
                text = f"{MOST_WAITING} corrections of {task} wait already; try again once they are queued"
                raise FeedbackFull(text)
            if not folder.path.is_dir():
                self._make_room()
            old, old_id = waiting.open.get(correction.key), waiting.open_id(correction.key)
            if old_id not in (None, correction.id):
                folder.replace(old_id, waiting)
            folder.keep(correction if old is None else replace(correction, since=old.since), picture)
            if len(self._reread(task).open) >= close_at:
                self._close(task)
            return True

    def close(self, task: str) -> None:
        """Make what is open a batch of its own; nothing happens without any."""
        with self._writer():
            if self._reread(task).open:
                self._close(task)

    def picture(self, task: str, batch: Batch, correction: Correction) -> bytes:
        """Return the picture's file; raise FileNotFoundError if it is gone."""
        return self._of(task).picture(batch.name, correction)

    def delivered(self, task: str, batch: Batch, job: str) -> None:
        """Forget a batch whose job is accepted; what it held is remembered by id."""
        with self._writer():
            waiting = self._reread(task)
            if batch.name not in waiting.batches:
                return
            ids = {key: one.id for key, one in batch.corrections.items()}
            swept, moved = self._of(task).deliver(batch.name, ids, job, waiting)
            self._count_set_aside(moved)
            self._own.discard(batch.name)
            shutil.rmtree(swept, ignore_errors=True)
            self._reread(task)

    def set_aside(self, task: str, batch: Batch, reason: str) -> None:
        """Keep a batch that can never become a job out of the way, for somebody to look at."""
        with self._writer():
            waiting = self._reread(task)
            if batch.name not in waiting.batches:
                return
            fates = {one: refused(reason) for one in waiting.ids_in(batch.name).values()}
            self._of(task).set_aside(batch.name, fates, waiting)
            self._own.discard(batch.name)
            self._count_set_aside(1)
            self._reread(task)

    def take_out(self, task: str, batch: Batch, reasons: Mapping[str, str]) -> Batch:
        """Keep some corrections of a batch out of the way, by key; return the batch without them."""
        left = {key: one for key, one in batch.corrections.items() if key not in reasons}
        with self._writer():
            waiting = self._reread(task)
            present = waiting.batches.get(batch.name, {})
            gone = [present[key] for key in reasons if key in present]
            fates = {one.id: refused(reasons[one.key]) for one in gone}
            self._of(task).take_out(batch.name, gone, fates, waiting)
            self._count_set_aside(len(gone))
            others = {name: held for name, held in waiting.batches.items() if name != batch.name}
            with self._memory:
                self._tasks[task] = replace(waiting, batches=others)  # so that it is read again
            self._reread(task)
        return replace(batch, corrections=left)

    @contextmanager
    def _writer(self) -> Iterator[None]:
        if not self._writing.acquire(timeout=LOCK_SECONDS):
            raise LockTaken("corrections are written slowly now; try again in a moment")
        try:
            with locked(self._folder / _LOCK, LOCK_SECONDS):
                yield
        finally:
            self._writing.release()

    def _known(self, task: str) -> Waiting:
        with self._memory:
            return self._tasks.get(task, Waiting())

    def _of(self, task: str) -> TaskFolder:
        return TaskFolder(self._folder / task)

    def _close(self, task: str) -> None:
        self._own.add(self._of(task).close())
        self._reread(task)

    def _reread(self, task: str) -> Waiting:
        """Bring memory up to what the disk holds of a task; return it."""
        folder, moved = self._of(task), 0
        waiting = Waiting()
        if folder.path.is_dir():
            waiting, moved = folder.read(self._known(task))
        self._count_set_aside(moved)
        with self._memory:
            if waiting.is_empty:
                self._tasks.pop(task, None)
            else:
                self._tasks[task] = waiting
        return waiting

    def _count_set_aside(self, count: int) -> None:
        with self._memory:
            self._set_aside += count

    def _names(self) -> set[str]:
        """Return the tasks that have a folder."""
        found = set()
        for path in self._folder.iterdir():
            with suppress(InputError):
                if path.is_dir():
                    found.add(check_task_name(path.name))
        return found

    def _is_idle(self, task: str) -> bool:
        """Tell whether all of a task was sent; one that cannot be read now may hold what was not."""
        try:
            return self._reread(task).is_idle
        except OSError:
            return False

    def _make_room(self) -> None:
        """Make place for one more task: folders of idle ones go for it, with the list of what was sent."""
        names = self._names()
        if len(names) < MOST_TASKS:
            return
        for task in sorted(name for name in names if self._is_idle(name)):
            if self._of(task).remove():
                names.discard(task)
            self._reread(task)
            if len(names) < MOST_TASKS:
                return
        text = f"corrections of {MOST_TASKS} tasks wait or were set aside already; try again in a moment"
        raise FeedbackFull(text)
