"""Keep many small things in one file: making a file for each costs more than decoding what is in it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes within a file: where they begin and how many there are."""

    path: Path
    offset: int
    bytes: int

    def read(self) -> bytes:
        """Return the bytes."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.bytes)


class Spool:
    """One growing file; threads may append at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0
        self._begun = False
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Return how many bytes were appended."""
        return self._end

    def append(self, data: bytes) -> Stretch:
        """Write bytes behind all others and return where they are."""
        with self._lock:
            flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if self._begun else os.O_EXCL)
            self._begun = True
            with os.fdopen(os.open(self._path, flags, 0o600), "wb") as out:
                out.write(data)
            stretch = Stretch(self._path, self._end, len(data))
            self._end += len(data)
        return stretch
