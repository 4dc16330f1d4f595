"""The corrections of one task as they lie on disk.

::

    <home>/feedback/<task>/
        open/<key>.json        a correction; written after its picture, replaced by a later one
        open/<sha>.picture     the file of a picture, named by the sha256 of its pixels
        batch-<id>/            what was open, closed by a rename; becomes one job
        refused-<name>/        a batch that can never be a job, and files that cannot be read
        deliveries.json        the last jobs, with the corrections that they learn
        fates.json             the last corrections that were replaced or set aside
        .sending               locked by the gateway that hands batches in

A closed batch only loses what cannot be learned, and its name is the Idempotency-Key of its job. So whatever
happens between the job's acceptance and the folder's removal, handing the batch in again gives the same job.
Everything here is called under the lock of the home, but for the reading of a batch's pictures.

A file that holds no correction is set aside at once. One that the disk does not give is passed over, for the
next look may find it whole; it is set aside when the batch that it lies in is delivered. What became of
either is noted if an earlier look of this process has read which correction it holds.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from adapter_store.durable import make_folder, sync_folder, write_durably
from server.feedback import aside
from server.feedback.corrections import Correction
from server.feedback.fates import (
    FATES,
    UNREAD_FATES,
    Fate,
    Fates,
    note_fates,
    read_fates,
    refused,
    replaced,
)
from server.feedback.files import OF_THE_PROCESS, Stamp, json_files, stamp_of
from server.logs import log

SENDING = ".sending"
_OPEN, _BATCH, _DONE = "open", "batch-", "done-"
_DELIVERIES, _UNREAD_DELIVERIES = "deliveries.json", "deliveries.unreadable"
_DELIVERIES_KEPT = 8
_NOT_READ = "its file could not be read when the others of its batch were sent"
Delivery = tuple[str, Mapping[str, str]]
"""A job, and the ids of what it learns by key."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits of one task: by key, the batches by name, oldest first.

    ``unread`` are the files that could not be read at the last look, each with the id of its correction if an
    earlier look has read it; ``fates`` is what became of corrections that wait no more and are in no job.
    """

    open: Mapping[str, Correction] = field(default_factory=dict)
    batches: Mapping[str, Mapping[str, Correction]] = field(default_factory=dict)
    deliveries: tuple[Delivery, ...] = ()
    refused: int = 0
    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    unread: Mapping[str, str | None] = field(default_factory=dict)
    fates: Fates = field(default_factory=Fates)

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to show."""
        return self.is_idle and not (self.deliveries or self.fates.by_id)

    @property
    def is_idle(self) -> bool:
        """Tell whether all of it was sent."""
        return not (self.open or self.batches or self.refused or self.unread)

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
        """Tell whether a correction waits, be it in a file that cannot be read now."""
        return identity in self.unread.values() or any(one.id == identity for one in self.all())

    def ids_in(self, folder: str) -> dict[str, str]:
        """Return the ids of the corrections in a folder by key, as far as they are known."""
        held = self.open if folder == _OPEN else self.batches.get(folder, {})
        unread = {
            PurePath(name).stem: one
            for name, one in self.unread.items()
            if one is not None and name.startswith(f"{folder}/")
        }
        return unread | {key: one.id for key, one in held.items()}

    def open_id(self, key: str) -> str | None:
        """Return the id of the correction that a later answer to its question takes the place of."""
        return self.ids_in(_OPEN).get(key)

    def sent_in(self, identity: str) -> str | None:
        """Return the last job that a correction was sent with, whatever was said later."""
        return next((job for job, ids in reversed(self.deliveries) if identity in ids.values()), None)


@dataclass(slots=True)
class _Look:
    """One look at a folder: what was known, what could not be read, and how many files were set aside."""

    known: Waiting
    unread: dict[str, str | None] = field(default_factory=dict)
    moved: int = 0
    fates: dict[str, Fate] = field(default_factory=dict)

    def lose(self, path: Path, reason: str) -> None:
        """Count a file that was set aside; which correction it held may be known from an earlier look."""
        self.moved += 1
        known = self._ids_in(path.parent).get(path.stem)
        if known is not None:
            self.fates[known] = refused(f"its file is damaged: {reason}")

    def pass_over(self, path: Path, error: OSError) -> None:
        """Leave out a file that cannot be read now; raise the fault if it is none of the file.

        What it held is still known from an earlier look, and waits.
        """
        if error.errno in OF_THE_PROCESS:
            raise error
        name = _name(path)
        self.unread[name] = self._ids_in(path.parent).get(path.stem)
        if not any(known.endswith(path.name) for known in self.known.unread):  # it may be in a batch by now
            reason = str(error.strerror or error)[:200]
            log(
                "a correction cannot be read now and is passed over",
                logging.WARNING,
                file=name,
                reason=reason,
            )

    def pass_over_all(self, folder: Path, error: OSError) -> None:
        """Leave out a folder that cannot be listed now; raise the fault if it is none of the folder."""
        self.pass_over(folder / "*", error)
        for key, one in self._ids_in(folder).items():
            self.unread[f"{folder.name}/{key}.json"] = one

    def _ids_in(self, folder: Path) -> dict[str, str]:
        """Return the ids of what a folder held; what is new may be what was open at the last look."""
        return self.known.ids_in(folder.name) or self.known.ids_in(_OPEN)

    def missed(self, batch: str) -> bool:
        """Tell whether something of a batch could not be read, now or at the last look."""
        return any(name.startswith(f"{batch}/") for name in (*self.unread, *self.known.unread))


class TaskFolder:
    """Read and change the folder of one task."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, known: Waiting) -> tuple[Waiting, int]:
        """Return what waits, and how many files that hold no correction were set aside.

        Args:
            known: what was read last; files that are still the same are not read again.

        Raises:
            OSError: the folder cannot be read, or no file can now.
        """
        look = _Look(known)
        opened, stamps = self._read_open(look)
        batches = {}
        for path in sorted(self.path.iterdir()):
            if path.name.startswith(_BATCH):
                batch = None if look.missed(path.name) else known.batches.get(path.name)
                if batch is None:
                    batch = self._read_batch(path, look)
                if batch:
                    batches[path.name] = batch
            elif path.name.startswith(_DONE):
                shutil.rmtree(path, ignore_errors=True)
        refused = sum(1 for path in self.path.iterdir() if path.name.startswith(aside.ASIDE))
        fates = read_fates(self.path, known.fates)
        if look.fates:
            note_fates(self.path, fates, look.fates)
            fates = read_fates(self.path, fates)
        deliveries = _deliveries(self.path / _DELIVERIES)
        return Waiting(opened, batches, deliveries, refused, stamps, look.unread, fates), look.moved

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

    def replace(self, old: str, known: Waiting) -> None:
        """Note that a correction is replaced; its own file is what the later one takes the place of."""
        note_fates(self.path, known.fates, {old: replaced()})

    def deliver(self, batch: str, ids: Mapping[str, str], job: str, known: Waiting) -> tuple[Path, int]:
        """Note the job of a batch and put its folder where it is swept.

        Returns:
            That folder, and how many corrections that were not sent are set aside.
        """
        others = [delivery for delivery in known.deliveries if delivery[0] != job]
        deliveries = [*others, (job, ids)][-_DELIVERIES_KEPT:]
        content = [{"job": sent, "ids": dict(held)} for sent, held in deliveries]
        left = {one: refused(_NOT_READ) for key, one in known.ids_in(batch).items() if key not in ids}
        note_fates(self.path, known.fates, left, forget=ids.values())
        write_durably(self.path / _DELIVERIES, json.dumps(content).encode())
        moved = aside.save_others(self.path / batch, ids.keys())
        return self._rename(batch, f"{_DONE}{batch}"), moved

    def set_aside(self, batch: str, fates: Mapping[str, Fate], known: Waiting) -> None:
        """Keep a batch out of the way, for somebody to look at."""
        note_fates(self.path, known.fates, fates)
        self._rename(batch, f"{aside.ASIDE}{batch}")

    def take_out(
        self, batch: str, corrections: Collection[Correction], fates: Mapping[str, Fate], known: Waiting
    ) -> None:
        """Keep some corrections of a batch out of the way, with their pictures."""
        note_fates(self.path, known.fates, fates)
        for one in corrections:
            aside.save(self.path / batch / f"{one.key}.json", one.line())

    def remove(self) -> bool:
        """Remove what is left of a task that waits for nothing; False if something unknown lies there."""
        shutil.rmtree(self.path / _OPEN, ignore_errors=True)
        for name in (_DELIVERIES, _UNREAD_DELIVERIES, FATES, UNREAD_FATES, SENDING):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()
        return not self.path.exists()

    def _rename(self, old: str, new: str) -> Path:
        os.rename(self.path / old, self.path / new)
        sync_folder(self.path)
        return self.path / new

    def _read_open(self, look: _Look) -> tuple[dict[str, Correction], dict[str, Stamp]]:
        """Return the open corrections by key, and the stamps of their files."""
        found, stamps = [], {}
        for path in self._files(self.path / _OPEN, look):
            one, stamp = self._correction(path, look)
            if one is None:
                continue
            found.append(one)
            if stamp:
                stamps[path.stem] = stamp
        return _by_key(found), stamps

    def _read_batch(self, folder: Path, look: _Look) -> dict[str, Correction]:
        """Return a batch's corrections by key; if it holds none at all, all of it is set aside."""
        read = [self._correction(path, look)[0] for path in self._files(folder, look)]
        found = _by_key([one for one in read if one is not None])
        if not found and not any(name.startswith(f"{folder.name}/") for name in look.unread):
            self._rename(folder.name, f"{aside.ASIDE}{folder.name}")
        return found

    def _files(self, folder: Path, look: _Look) -> list[Path]:
        try:
            return json_files(folder)
        except OSError as error:
            look.pass_over_all(folder, error)
            return []

    def _correction(self, path: Path, look: _Look) -> tuple[Correction | None, Stamp | None]:
        """Return a correction, read only if it is not known from an earlier look, and its file's stamp."""
        stamp = stamp_of(path)
        if stamp is not None and look.known.stamps.get(path.stem) == stamp:
            return look.known.open[path.stem], stamp
        return self._read_or_set_aside(path, look), stamp

    def _read_or_set_aside(self, path: Path, look: _Look) -> Correction | None:
        """Return a correction; None if its file holds none and was set aside, or cannot be read now.

        Raises:
            OSError: no file can be read now.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            look.pass_over(path, error)
            return None
        try:
            one = Correction.of(json.loads(content))
            if one.key != path.stem:
                raise ValueError("its name is not that of its question and picture")
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(error)[:200]
            log("a correction cannot be read and is set aside", logging.ERROR, file=path.name, reason=reason)
            aside.save(path, content)
            look.lose(path, reason)
            return None
        return one


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


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
