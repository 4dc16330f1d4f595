"""Read which pictures the tasks of a lineage are measured on.

The trainer writes ``split.json`` in each task's folder; whoever checks data only
reads the keys in it.
"""

from __future__ import annotations

import json
from pathlib import Path

SPLIT_FILE = "split.json"


def held_out_folder(home: Path, lineage: str) -> Path:
    """Return where the trainer keeps the held-out pictures of a lineage."""
    return home / "heldout" / lineage


Seen = dict[Path, tuple[tuple[int, int, int], frozenset[str] | None]]
"""The state of each file (time in ns, bytes, inode) and its keys then."""


class HeldOut:
    """The keys of what the tasks below a folder are measured on; a file is read again only when it changed.

    Threads may ask at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: Seen = {}

    def keys(self) -> dict[str, frozenset[str]]:
        """Return the keys of each task; empty if there is nothing yet."""
        before = self._read
        now: Seen = {}
        found: dict[str, frozenset[str]] = {}
        for path in sorted(self._folder.glob(f"*/{SPLIT_FILE}")):
            try:
                seen = path.stat()
            except OSError:
                continue
            state = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
            known = before.get(path)
            entry = known if known is not None and known[0] == state else (state, _keys_in(path))
            now[path] = entry
            if entry[1] is not None:
                found[path.parent.name] = entry[1]
        self._read = now
        return found


def _keys_in(path: Path) -> frozenset[str] | None:
    """Return the keys of one file; None if it cannot be read: the trainer, whose file it is, says why."""
    try:
        return frozenset(json.loads(path.read_bytes())["held_out"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
