"""Read the rows of a Hugging Face parquet file, a few at a time.

Needs the optional package ``pyarrow``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapter_store.datasets.columns import columns_of
from adapter_store.datasets.json_stream import Record
from adapter_store.datasets.records import Limits

_COLUMNS = ("images", "messages", "conversations", "texts", "system", "input", "history", "videos", "audios")
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
    schema = file.schema_arrow
    used = set(columns_of(schema.names).values())
    known = [name for name in schema.names if name in _COLUMNS or name in used]
    if not known:
        names = ", ".join(schema.names[:6])
        yield Record(1, None, reason=f"no known column (found: {names!a}); needed are messages and images")
        return
    classes = _class_names(schema.metadata or {}, known)
    line = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=known, use_threads=False):
        for row in batch.to_pylist():
            line += 1
            for name, words in classes.items():
                number = row[name]
                if isinstance(number, int) and 0 <= number < len(words):
                    row[name] = words[number]
            yield Record(line, None, row)


def _class_names(metadata: dict[bytes, bytes], known: list[str]) -> dict[str, list[str]]:
    """Return the words behind the numbers of label columns, which Hugging Face keeps beside the schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {name: features[name]["names"] for name in known if "names" in features.get(name, {})}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: list(map(str, words)) for name, words in found.items() if isinstance(words, list)}


def _too_large(metadata: Any, packed_bytes: int, limits: Limits) -> str | None:
    if metadata.num_rows > limits.max_examples:
        return f"{metadata.num_rows} rows; at most {limits.max_examples} examples are accepted"
    total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    allowed = max(limits.free_expansion_bytes, int(packed_bytes * limits.max_expansion))
    if total > min(allowed, limits.max_total_bytes):
        return f"the rows unpack to {total} bytes, too many for a file of {packed_bytes} bytes"
    return None
