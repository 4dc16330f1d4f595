"""What a folder of corrections holds, and whether a file in it is still the one that was read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

OF_THE_PROCESS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Faults that say nothing about the file that was to be read."""
Stamp = tuple[int, int, int]
"""Inode, time and size of a file: whatever is written durably makes a new one."""


def stamp_of(path: Path) -> Stamp | None:
    """Return a file's stamp; None if it has none now, and reading it says why."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def json_files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder, none if it is not there.

    Raises:
        OSError: it cannot be listed now, which ``Path.glob`` would tell as an empty folder.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if entry.name.endswith(".json"))
    except (FileNotFoundError, NotADirectoryError):
        return []
