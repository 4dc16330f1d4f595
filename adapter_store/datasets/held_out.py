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


def held_out_keys(folder: Path) -> dict[str, frozenset[str]]:
    """Return the keys of what each task below ``folder`` is measured on; empty if there is nothing yet."""
    found: dict[str, frozenset[str]] = {}
    for path in sorted(folder.glob(f"*/{SPLIT_FILE}")):
        try:
            found[path.parent.name] = frozenset(json.loads(path.read_bytes())["held_out"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the trainer, whose file it is, reports what is wrong with it
    return found
