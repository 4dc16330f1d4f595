"""Tell which part of a data set is for measuring only, where the people who made it have decided.

A record says so in its field ``split``, a data file by its name (``test.jsonl``,
``validation-00000-of-00001.parquet``) or by a folder of that name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from adapter_store.datasets.records import Part, shown

_TRAIN = frozenset({"train", "training"})
_TEST = frozenset({"test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "held_out"})


def part_of(value: Any) -> tuple[Part | None, str | None]:
    """Return the part that a field ``split`` names, or None and, if it cannot be one, the reason."""
    if value is None or value == "":
        return None, None
    found = _part(value) if isinstance(value, str) else None
    if found is None:
        return None, f'the split "{shown(str(value), 24)}" is not known; write train or test'
    return found, None


def part_of_path(name: str) -> Part | None:
    """Return the part that a file's own name begins with, or else that a folder above it is named after."""
    *folders, last = name.split("/")
    first_word = re.split(r"[^A-Za-z0-9]", last, maxsplit=1)[0]
    return _part(first_word) or part_of_folders(folders)


def part_of_folders(folders: Sequence[str]) -> Part | None:
    """Return the part that the innermost folder with such a name stands for."""
    return next((part for folder in reversed(folders) if (part := _part(folder))), None)


def _part(word: str) -> Part | None:
    plain = re.split(r"[^a-z_]", word.strip().lower().replace("-", "_"), maxsplit=1)[0]  # val2014 is val
    if plain in _TRAIN:
        return "train"
    return "test" if plain in _TEST else None
