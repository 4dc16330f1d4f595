"""How corrections ended that no job learns: a later answer replaced them, or they were set aside."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from adapter_store.durable import write_durably
from server.feedback.files import OF_THE_PROCESS, Stamp, stamp_of
from server.logs import log

FATES, UNREAD_FATES = "fates.json", "fates.unreadable"
_FATES_KEPT = 256
REPLACED, REFUSED = "replaced", "refused"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a correction: ``replaced`` or ``refused``, and why."""

    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fates:
    """What is noted of a task: fates by id, oldest first, and the stamp of the file that they lay in."""

    by_id: Mapping[str, Fate] = field(default_factory=dict)
    stamp: Stamp | None = None


def replaced() -> Fate:
    """Return the fate of a correction that waited when another answer came to its question."""
    return Fate(REPLACED, "a later answer to the same question replaced it")


def refused(reason: str) -> Fate:
    """Return the fate of a correction that was set aside."""
    return Fate(REFUSED, f"it cannot be learned and was set aside: {reason}")


def read_fates(folder: Path, known: Fates) -> Fates:
    """Return the fates of a task's corrections; what was known, while the disk does not give the file.

    Nothing else depends on them, so such a file keeps no correction waiting.

    Raises:
        OSError: no file can be read now.
    """
    path = folder / FATES
    stamp = stamp_of(path)
    if stamp is not None and stamp == known.stamp:
        return known
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Fates()
    except OSError as error:
        if error.errno in OF_THE_PROCESS:
            raise
        return Fates(known.by_id)
    try:
        found = {str(one): Fate(str(status), str(why)) for one, status, why in json.loads(content)}
    except (ValueError, TypeError, RecursionError) as error:
        log("fates of corrections cannot be read", logging.WARNING, reason=str(error)[:200])
        with suppress(OSError):
            os.replace(path, folder / UNREAD_FATES)  # it would be found unreadable at every look
        return Fates()
    return Fates(found, stamp)


def note_fates(folder: Path, known: Fates, new: Mapping[str, Fate], forget: Collection[str] = ()) -> None:
    """Write down how corrections ended, and forget it of those whose ids are given anew to a job."""
    if not new and not known.by_id.keys() & set(forget):
        return
    others = {one: fate for one, fate in known.by_id.items() if one not in new and one not in forget}
    last = [*others.items(), *new.items()][-_FATES_KEPT:]
    content = [[one, fate.status, fate.reason] for one, fate in last]
    write_durably(folder / FATES, json.dumps(content, ensure_ascii=False).encode())
