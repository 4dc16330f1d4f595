"""Read the rows of a Hugging Face parquet file, a few at a time.

Needs the optional package ``pyarrow``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapter_store.datasets.json_stream import Record
from adapter_store.datasets.records import Limits

_COLUMNS = ("id", "image", "images", "messages", "conversations", "question", "answer", "system",
            "videos", "audios")  # fmt: skip
_ROWS_AT_ONCE = 16


def read_parquet(path: Path, limits: Limits) -> Iterator[Record]:
    """Yield every row as a record; ``line`` is the row number from 1."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
        arrow: Any = importlib.import_module("pyarrow")
    except ImportError:
        yield Record(1, None, reason="parquet needs the package pyarrow: install it, or send JSONL")
        return
    try:
        with parquet.ParquetFile(path) as file:
            reason = _too_large(file.metadata, path.stat().st_size, limits)
            if reason:
                yield Record(1, None, reason=reason)
                return
            yield from _rows(file)
    except (arrow.ArrowException, OSError, ValueError, NotImplementedError):
        yield Record(1, None, reason="the parquet file is damaged or cut off")


def _rows(file: Any) -> Iterator[Record]:
    known = [name for name in file.schema_arrow.names if name in _COLUMNS]
    if not known:
        names = ", ".join(file.schema_arrow.names[:6])
        yield Record(1, None, reason=f"no known column (found: {names!a}); needed are messages and images")
        return
    line = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=known, use_threads=False):
        for row in batch.to_pylist():
            line += 1
            yield Record(line, None, row)


def _too_large(metadata: Any, packed_bytes: int, limits: Limits) -> str | None:
    if metadata.num_rows > limits.max_examples:
        return f"{metadata.num_rows} rows; at most {limits.max_examples} examples are accepted"
    total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    allowed = max(limits.free_expansion_bytes, int(packed_bytes * limits.max_expansion))
    if total > min(allowed, limits.max_total_bytes):
        return f"the rows unpack to {total} bytes, too many for a file of {packed_bytes} bytes"
    return None
