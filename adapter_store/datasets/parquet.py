"""Read the rows of a Hugging Face parquet file in bounded memory, whatever the file says of itself.

A value that many rows name is written once; it is read as Arrow's dictionaries, and rows are measured before
one of them becomes Python values. Needs the optional package ``pyarrow``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_store.datasets.columns import NEEDED, columns_of, missing_answer
from adapter_store.datasets.json_stream import Record
from adapter_store.datasets.parquet_pages import Chunk, Pages, chunks_of, pages_of
from adapter_store.datasets.parquet_sizes import row_bytes
from adapter_store.datasets.records import MIB, Limits, shown

_TALKS = ("messages", "conversations", "texts")
_COLUMNS = (*_TALKS, "images", "system", "input", "history", "videos", "audios")
_END = b"PAR1"
_ROWS_AT_ONCE = 16
# Every batch copies the dictionaries, so where nearly all lies in them few and long batches are read.
_MOST_ROWS_AT_ONCE = 1024
_FEW_BYTES = 64 * MIB
_BATCH_BYTES = 8 * MIB
# Arrow keeps a dictionary three times more beside its page: large ones are read row by row.
_LARGE_DICTIONARIES_BYTES = 16 * MIB
_BUFFER_BYTES = MIB
# Each entry of a footer takes hundreds of times its bytes when read; 4 MiB describe thousands of row groups.
_MAX_FOOTER_BYTES = 4 * MIB
# What is unpacked in one piece: a page, and of lists, whose rows may span pages, a row group.
_MAX_PIECE_BYTES = 256 * MIB
_MAX_PAGES = 1_000_000
_MAX_CHUNKS = 200_000
_MAX_DICTIONARY_VALUES = 1_000_000
_MAX_FIXED_BYTES = 64
_SMALLER = "write it with smaller row groups (row_group_size=100)"


def read_parquet(path: Path, limits: Limits) -> Iterator[Record]:
    """Yield every row as a record; ``line`` is the row number from 1."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
        arrow: Any = importlib.import_module("pyarrow")
    except ImportError:
        yield Record(1, None, reason="parquet needs the package pyarrow: install it, or send JSONL")
        return
    try:
        yield from _read(parquet, path, limits)
    except _Refused as refusal:
        yield Record(1, None, reason=str(refusal))
    except (arrow.ArrowException, OSError, ValueError, LookupError, NotImplementedError):
        yield Record(1, None, reason="the parquet file is damaged or cut off")


class _Refused(Exception):
    """Say why a file is not read."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A column as it lies in the file; what is shown as one may be several of them."""

    index: int
    path: str
    is_text: bool
    is_list: bool
    is_category: bool
    fixed_bytes: int


def _read(parquet: Any, path: Path, limits: Limits) -> Iterator[Record]:
    _check_footer(path)
    with parquet.ParquetFile(path) as file:
        known = _known(file.schema_arrow.names)
        if file.metadata.num_rows > limits.max_examples:
            most = limits.max_examples
            raise _Refused(f"{file.metadata.num_rows} rows; at most {most} examples are accepted")
        leaves = _leaves(file, known)
        if (columns := file.metadata.num_row_groups * len(file.schema)) > _MAX_CHUNKS:
            raise _Refused(f"{columns} columns of row groups; at most {_MAX_CHUNKS} are accepted")
        chunks = chunks_of(path, _MAX_CHUNKS)
        if len(chunks) != file.metadata.num_row_groups:
            raise ValueError("row groups that not everybody sees")
        groups = _groups(path, chunks, leaves, limits)
        _check_total(groups, path.stat().st_size, limits)
    repeated = _repeated(leaves, groups)
    again = {
        "metadata": file.metadata,
        "read_dictionary": [leaf.path for leaf in leaves if leaf.index in repeated],
        "buffer_size": _BUFFER_BYTES,
        # Arrow would otherwise have all packed bytes of a row group in memory before its first row.
        "pre_buffer": False,
    }
    with parquet.ParquetFile(path, **again) as file:
        at_once = [_rows_at_once(leaves, repeated, group) for group in groups]
        yield from _rows(file, known, at_once, limits, joined=not repeated)


def _check_footer(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(-8, 2)
        size = int.from_bytes(file.read(4), "little")
        if file.read(4) != _END:
            raise ValueError("not the end of a parquet file: the size ahead of it is none")
    if size > _MAX_FOOTER_BYTES:
        text = f"the parquet footer has {size} bytes; at most {_MAX_FOOTER_BYTES} are accepted"
        raise _Refused(f"{text}: write fewer row groups, or several files")


def _known(names: list[str]) -> list[str]:
    uses = columns_of(names)
    used = set(uses.values())
    known = [name for name in names if name in _COLUMNS or name in used]
    if "answer" not in uses and not any(name in _TALKS for name in known):
        if "image" in uses or "question" in uses:
            raise _Refused(missing_answer(names))
        found = shown(", ".join(names[:6]))
        others = "or images beside messages, conversations or texts"
        raise _Refused(f"no known column (found: {found}); needed are {NEEDED}, {others}")
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise _Refused(f'the column "{shown(twice)}" is there twice; nothing was read')
    return known


def _leaves(file: Any, known: list[str]) -> list[_Leaf]:
    leaves: list[_Leaf] = []
    kinds: Any = importlib.import_module("pyarrow").types
    for index in range(len(file.schema)):
        column = file.schema.column(index)
        if any(column.path == name or column.path.startswith(f"{name}.") for name in known):
            is_text = column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"
            is_list = column.max_repetition_level > 0
            fixed = column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
            at = file.schema_arrow.get_field_index(column.path)
            is_category = at >= 0 and kinds.is_dictionary(file.schema_arrow.field(at).type)
            leaves.append(_Leaf(index, column.path, is_text, is_list, is_category, fixed))
    return leaves


def _groups(
    path: Path, chunks: list[list[Chunk]], leaves: list[_Leaf], limits: Limits
) -> list[dict[int, Pages]]:
    """Return, for each row group, the pages of each leaf; raise _Refused if one takes too much memory."""
    groups: list[dict[int, Pages]] = []
    pages = 0
    values = dict.fromkeys((leaf.index for leaf in leaves), 0)
    with path.open("rb") as file:
        for number, columns in enumerate(chunks, start=1):
            group: dict[int, Pages] = {}
            for leaf in leaves:
                found = pages_of(file.fileno(), columns[leaf.index], _MAX_PAGES - pages)
                group[leaf.index] = found
                pages += found.count
                values[leaf.index] += found.values
                reason = _too_much(leaf, found, values[leaf.index], limits)
                if reason:
                    name = shown(leaf.path, 40)
                    raise _Refused(f'the column "{name}" in row group {number} {reason}')
            groups.append(group)
    return groups


def _too_much(leaf: _Leaf, pages: Pages, values: int, limits: Limits) -> str | None:
    """Return why a column of a row group is not read."""
    if leaf.fixed_bytes > _MAX_FIXED_BYTES:
        return f"has values of {leaf.fixed_bytes} fixed bytes; write text or binary"
    if leaf.is_text and pages.shares_prefixes:
        return "is packed as DELTA_BYTE_ARRAY, which has no bound; write it plain or with a dictionary"
    piece = pages.bytes if leaf.is_list else pages.largest_bytes
    if piece > _MAX_PIECE_BYTES:
        return f"unpacks to {piece} bytes in one piece; at most {_MAX_PIECE_BYTES} are accepted: {_SMALLER}"
    if not leaf.is_list and pages.largest_mean_bytes > limits.max_record_bytes:
        return f"has values of more than {limits.max_record_bytes} bytes"
    most = 2 * limits.max_turns * limits.max_examples
    if values > most:
        return f"brings the values to {values}; at most {most} are accepted"
    if pages.dictionary_values > _MAX_DICTIONARY_VALUES:
        most = _MAX_DICTIONARY_VALUES
        return f"has a dictionary of {pages.dictionary_values} values; at most {most} are accepted"
    return None


def _check_total(groups: list[dict[int, Pages]], packed_bytes: int, limits: Limits) -> None:
    total = sum(pages.bytes for group in groups for pages in group.values())
    allowed = max(limits.free_expansion_bytes, int(packed_bytes * limits.max_expansion))
    if total > min(allowed, limits.max_total_bytes):
        raise _Refused(f"the rows unpack to {total} bytes, too many for a file of {packed_bytes} bytes")


def _repeated(leaves: list[_Leaf], groups: list[dict[int, Pages]]) -> frozenset[int]:
    """Return the columns whose repeated values stay one value each.

    In lists they must, as a row has many; and Arrow reads what was written as a category in no other way.
    """
    texts = [leaf for leaf in leaves if leaf.is_text]
    others = [leaf.index for leaf in texts if not (leaf.is_list or leaf.is_category)]
    sizes = (sum(group[index].dictionary_bytes for index in others) for group in groups)
    if max(sizes, default=0) <= _LARGE_DICTIONARIES_BYTES:
        others = []
    return frozenset(
        leaf.index
        for leaf in texts
        if leaf.index not in others and any(group[leaf.index].dictionary_bytes for group in groups)
    )


def _rows_at_once(leaves: list[_Leaf], repeated: frozenset[int], group: dict[int, Pages]) -> int:
    """Return how many rows of a group lie in memory together, so that they are about 8 MiB."""
    a_row, in_lists = 1, 0
    for leaf in leaves:
        pages = group[leaf.index]
        if leaf.is_list:
            in_lists += pages.data_bytes
            continue
        a_row += pages.largest_mean_bytes
        if leaf.is_text and leaf.index not in repeated:
            a_row += pages.dictionary_bytes  # every row may name a value that is nearly all of it
    rows = min(max(1, _BATCH_BYTES // a_row), _MOST_ROWS_AT_ONCE)
    return rows if in_lists < _FEW_BYTES else min(rows, _ROWS_AT_ONCE)


def _rows(
    file: Any, known: list[str], at_once: list[int], limits: Limits, *, joined: bool
) -> Iterator[Record]:
    classes = _class_names(file.schema_arrow.metadata or {}, known)
    line = 0
    total = 0
    for number, rows in enumerate(at_once):
        # Group by group: a batch over two of them has two dictionaries, which Arrow does not join in lists.
        batches = file.iter_batches(rows, row_groups=[number], columns=known, use_threads=False)
        for batch in _joined(batches) if joined else batches:
            for row, size in _converted(batch, limits):
                line += 1
                total += size
                if total > limits.max_total_bytes:
                    most = limits.max_total_bytes
                    raise _Refused(f"the rows up to {line} have more than {most} bytes; split the data set")
                if row is None:
                    most = limits.max_record_bytes
                    yield Record(line, None, reason=f"the row has {size} bytes; at most {most} are accepted")
                    continue
                for name, words in classes.items():
                    label = row[name]
                    if isinstance(label, int) and 0 <= label < len(words):
                        row[name] = words[label]
                yield Record(line, None, row, is_row=True)


def _joined(batches: Iterator[Any]) -> Iterator[Any]:
    """Put short batches together, up to 8 MiB: to measure and copy a row alone takes ten times its reading.

    How large the values of a dictionary are is known only once they are read; so they are read row by row.
    """
    waiting: list[Any] = []
    held = 0
    for batch in batches:
        size = batch.nbytes
        if held + size > _BATCH_BYTES:
            yield from _as_one(waiting)
            waiting, held = [], 0
        waiting.append(batch)
        held += size
        if held > _BATCH_BYTES or len(waiting) * len(batch) >= _ROWS_AT_ONCE:
            yield from _as_one(waiting)
            waiting, held = [], 0
    yield from _as_one(waiting)


def _as_one(batches: list[Any]) -> Iterator[Any]:
    """Yield what lies in all batches, the only one as it is."""
    arrow: Any = importlib.import_module("pyarrow")
    if batches:
        yield batches[0] if len(batches) == 1 else arrow.concat_batches(batches)


def _converted(batch: Any, limits: Limits) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Yield each row and its bytes; None for one that is too large."""
    sizes = row_bytes(batch).tolist()
    for start in range(0, len(sizes), _ROWS_AT_ONCE):
        some = sizes[start : start + _ROWS_AT_ONCE]
        if sum(some) <= limits.max_record_bytes:
            yield from zip(batch.slice(start, len(some)).to_pylist(), some, strict=True)
            continue
        for place, size in enumerate(some, start):
            fits = size <= limits.max_record_bytes
            yield batch.slice(place, 1).to_pylist()[0] if fits else None, size


def _class_names(metadata: dict[bytes, bytes], known: list[str]) -> dict[str, list[str]]:
    """Return the words behind the numbers of label columns, which Hugging Face keeps beside the schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {name: features[name]["names"] for name in known if "names" in features.get(name, {})}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: list(map(str, words)) for name, words in found.items() if isinstance(words, list)}
