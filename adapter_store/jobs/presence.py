"""Know of a worker on this machine that it has ended, by a lock that only its end takes from it.

Each worker holds one byte, drawn at random, of a file in the home. Its name says machine, file and byte and
is told with every claim. Whoever has the same file open on the same running machine asks the kernel whether
the byte is still held. On another machine, or in another home, nothing is known and the lease decides.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import struct
from pathlib import Path
from typing import Self

logger = logging.getLogger(__name__)

_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Tells this running of this machine from any other; containers on one machine share it, as they do locks."""
_FLOCK = "hhqqi0q"
"""C's ``struct flock``: type, whence, start, length and process id, filled up to a multiple of 8 bytes."""
_PLACES = 62


class Presence:
    """Hold a place in a file for as long as this process lives; ``name`` tells others which.

    The lock belongs to the open file, so a child that was forked holds it, too: then the lease decides.
    """

    def __init__(self, handle: int, machine: str, file: str) -> None:
        self._handle = handle
        self._where = f"{machine} {file}"
        place = secrets.randbits(_PLACES)
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _one_byte(place))
        self.name = f"{self._where} {place}"

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Return a place in the file at ``path``, made if missing; None where there are no such locks."""
        try:
            machine = _BOOT.read_text().strip()
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            logger.info("workers that end are known by their leases only: %s", error)
            return None
        try:
            found = os.fstat(handle)
            place = cls(handle, machine, f"{found.st_dev}:{found.st_ino}")
            _check_seen(path, place.name)
            return place
        except (OSError, AttributeError) as error:  # a system or a file system without these locks
            os.close(handle)
            logger.info("workers that end are known by their leases only: %s", error)
            return None

    def has_ended(self, name: str) -> bool:
        """Tell whether it is certain that the process of that name has ended."""
        where, _, place = name.rpartition(" ")
        if self._handle < 0 or where != self._where or name == self.name or not place.isdecimal():
            return False
        try:
            return not _is_held(self._handle, int(place))
        except (OSError, struct.error):
            return False

    def leave(self) -> None:
        """Give the place up; from then on it has no name and knows of nobody."""
        handle, self._handle, self.name = self._handle, -1, ""  # its number may soon be another file's
        if handle >= 0:
            os.close(handle)


def _check_seen(path: Path, name: str) -> None:
    """Raise OSError if a file system grants locks but does not tell others of them."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not _is_held(handle, int(name.rpartition(" ")[2])):
            raise OSError("the file system does not tell of locks that are held")
    finally:
        os.close(handle)


def _is_held(handle: int, place: int) -> bool:
    answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _one_byte(place))
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK


def _one_byte(place: int) -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
