"""The corrections of one task as they lie on disk.

::

    <home>/feedback/<task>/
        open/<key>.json        a correction; written after its picture, replaced by a later one
        open/<sha>.picture     the file of a picture, named by the sha256 of its pixels
        batch-<id>/            what was open, closed by a rename; becomes one job
        refused-<name>/        a batch that can never be a job, and files that cannot be read
        deliveries.json        the last jobs, with the corrections that they learn
        .sending               locked by the gateway that hands batches in

A closed batch never changes, and its name is the Idempotency-Key of its job. So whatever happens between the
job's acceptance and the folder's removal, handing the batch in again gives the same job. Everything here is
called under the lock of the home, but for the reading of a batch's pictures.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from adapter_store.durable import make_folder, sync_folder, write_durably
from server.feedback.corrections import Correction
from server.logs import log

SENDING = ".sending"
_OPEN, _BATCH, _DONE, _ASIDE = "open", "batch-", "done-", "refused-"
_UNREADABLE = f"{_ASIDE}unreadable"
_DELIVERIES, _UNREAD_DELIVERIES = "deliveries.json", "deliveries.unreadable"
_DELIVERIES_KEPT = 8
_SHA256 = re.compile(rb"\b[0-9a-f]{64}\b")
Delivery = tuple[str, Mapping[str, str]]
"""A job, and the ids of what it learns by key."""
_Stamp = tuple[int, int, int]
"""Inode, time and size of a file: each write of a correction makes a new one."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits of one task: by key, the batches by name, oldest first."""

    open: Mapping[str, Correction] = field(default_factory=dict)
    batches: Mapping[str, Mapping[str, Correction]] = field(default_factory=dict)
    deliveries: tuple[Delivery, ...] = ()
    refused: int = 0
    stamps: Mapping[str, _Stamp] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to show."""
        return not (self.open or self.batches or self.deliveries or self.refused)

    @property
    def is_idle(self) -> bool:
        """Tell whether all of it was sent."""
        return not (self.open or self.batches or self.refused)

    def newest(self, key: str) -> Correction | None:
        """Return the newest correction of this key that waits."""
        groups = (self.open, *reversed([*self.batches.values()]))
        return next((group[key] for group in groups if key in group), None)

    def all(self) -> list[Correction]:
        """Return every correction, those of the oldest batch first."""
        return [one for group in (*self.batches.values(), self.open) for one in group.values()]

    def job_of(self, identity: str) -> str | None:
        """Return the job of a correction; None if it or a later answer to its question waits or went."""
        last = {key: (job, one) for job, ids in self.deliveries for key, one in ids.items()}
        key = next((key for key, (_, one) in last.items() if one == identity), None)
        return None if key is None or self.newest(key) is not None else last[key][0]

    def holds(self, identity: str) -> bool:
        """Tell whether a correction waits."""
        return any(one.id == identity for one in self.all())

    def sent_in(self, identity: str) -> str | None:
        """Return the last job that a correction was sent with, whatever was said later."""
        return next((job for job, ids in reversed(self.deliveries) if identity in ids.values()), None)


class TaskFolder:
    """Read and change the folder of one task."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, known: Waiting) -> tuple[Waiting, int]:
        """Return what waits, and how many files that cannot be read were set aside.

        Args:
            known: what was read last; files that are still the same are not read again.
        """
        opened, stamps, moved = self._read_open(known)
        batches = {}
        for path in sorted(self.path.iterdir()):
            if path.name.startswith(_BATCH):
                batch = known.batches.get(path.name)
                if batch is None:
                    batch, unread = self._read_batch(path)
                    moved += unread
                if batch:
                    batches[path.name] = batch
            elif path.name.startswith(_DONE):
                shutil.rmtree(path, ignore_errors=True)
        refused = sum(1 for path in self.path.iterdir() if path.name.startswith(_ASIDE))
        return Waiting(opened, batches, _deliveries(self.path / _DELIVERIES), refused, stamps), moved

    def keep(self, correction: Correction, picture: bytes) -> None:
        """Write a correction durably, after its picture."""
        folder = self.path / _OPEN
        make_folder(folder)
        place = folder / f"{correction.picture}.picture"
        if not place.exists():
            write_durably(place, picture)
        write_durably(folder / f"{correction.key}.json", correction.line())

    def close(self) -> str:
        """Make what is open a batch of its own; return its name."""
        name = f"{_BATCH}{time.time_ns():016x}{uuid.uuid4().hex[:16]}"
        self._rename(_OPEN, name)
        return name

    def picture(self, batch: str, correction: Correction) -> bytes:
        """Return the file of a picture; raise FileNotFoundError if it is gone."""
        return (self.path / batch / f"{correction.picture}.picture").read_bytes()

    def deliver(self, batch: str, ids: Mapping[str, str], job: str, before: tuple[Delivery, ...]) -> Path:
        """Note the job of a batch and put its folder where it is swept; return that folder."""
        others = [known for known in before if known[0] != job]
        deliveries = [*others, (job, ids)][-_DELIVERIES_KEPT:]
        content = [{"job": known, "ids": dict(held)} for known, held in deliveries]
        write_durably(self.path / _DELIVERIES, json.dumps(content).encode())
        return self._rename(batch, f"{_DONE}{batch}")

    def set_aside(self, batch: str) -> None:
        """Keep a batch out of the way, for somebody to look at."""
        self._rename(batch, f"{_ASIDE}{batch}")

    def remove(self) -> bool:
        """Remove what is left of a task that waits for nothing; False if something unknown lies there."""
        shutil.rmtree(self.path / _OPEN, ignore_errors=True)
        for name in (_DELIVERIES, _UNREAD_DELIVERIES, SENDING):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()
        return not self.path.exists()

    def _rename(self, old: str, new: str) -> Path:
        os.rename(self.path / old, self.path / new)
        sync_folder(self.path)
        return self.path / new

    def _read_open(self, known: Waiting) -> tuple[dict[str, Correction], dict[str, _Stamp], int]:
        """Return the open corrections by key, the stamps of their files, and how many were set aside."""
        found, stamps, moved = [], {}, 0
        for path in _files(self.path / _OPEN):
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            one = known.open.get(path.stem) if known.stamps.get(path.stem) == stamp else None
            one = one or self._read_or_set_aside(path)
            if one is None:
                moved += 1
                continue
            found.append(one)
            stamps[path.stem] = stamp
        return _by_key(found), stamps, moved

    def _read_batch(self, folder: Path) -> tuple[dict[str, Correction], int]:
        """Return a batch's corrections by key, and how many were set aside; without any, all of it is."""
        read = [self._read_or_set_aside(path) for path in _files(folder)]
        found = _by_key([one for one in read if one is not None])
        if not found:
            self.set_aside(folder.name)
        return found, len(read) - len(found)

    def _read_or_set_aside(self, path: Path) -> Correction | None:
        """Return a correction; None if its file holds none and was set aside.

        Raises:
            OSError: the file cannot be read now; nothing is moved, for the next look may find it whole.
        """
        content = path.read_bytes()
        try:
            one = Correction.of(json.loads(content))
            if one.key != path.stem:
                raise ValueError("its name is not that of its question and picture")
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(error)[:200]
            log("a correction cannot be read and is set aside", logging.ERROR, file=path.name, reason=reason)
            self._save_unreadable(path, content)
            return None
        return one

    def _save_unreadable(self, path: Path, content: bytes) -> None:
        """Move a file where no delivery removes it, after a copy of the picture that it names."""
        aside = self.path / _UNREADABLE
        make_folder(aside)
        for name in set(_SHA256.findall(content)):
            picture = path.parent / f"{name.decode()}.picture"
            if picture.exists():
                shutil.copy2(picture, aside / picture.name)
        os.replace(path, aside / path.name)
        sync_folder(aside)


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*.json")) if folder.is_dir() else []


def _by_key(found: list[Correction]) -> dict[str, Correction]:
    return {one.key: one for one in sorted(found, key=lambda one: (one.since, one.key))}


def _deliveries(path: Path) -> tuple[Delivery, ...]:
    try:
        return tuple((item["job"], dict(item["ids"])) for item in json.loads(path.read_bytes()))
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError, KeyError) as error:
        log("the list of sent corrections cannot be read", logging.WARNING, reason=str(error)[:200])
        os.replace(path, path.with_name(_UNREAD_DELIVERIES))  # it would be found unreadable at every look
        return ()
