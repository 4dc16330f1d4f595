"""Read what the footer and the page headers of a parquet file claim, before any page is unpacked.

The footer's own sums bind nobody: pages are unpacked into as many bytes as their headers say. The headers
are walked as Arrow walks them and with the types that it takes, so both see the same pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adapter_store.datasets.parquet_thrift import I32, I64, Compact, Struct, Wanted

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
# Which field of a page header describes a page of each type, and which field in it is the encoding.
_DESCRIBED = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}
_DELTA_BYTE_ARRAY = 7
_FIRST_BYTES = 4096
_MAX_HEADER_BYTES = 1 << 20
_PAGE: Wanted = {1: I32, 2: I32, 3: I32, **{of: {1: I32, code: I32} for of, code in _DESCRIBED.values()}}
_VALUES, _PACKED, _FIRST_DATA, _FIRST_DICTIONARY = 5, 7, 9, 11
_ROW_GROUPS, _COLUMNS, _COLUMN = 4, 1, 3
_FOOTER: Wanted = {
    _ROW_GROUPS: [
        {_COLUMNS: [{_COLUMN: {_VALUES: I64, _PACKED: I64, _FIRST_DATA: I64, _FIRST_DICTIONARY: I64}}]}
    ]
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of one row group: its values, and where its packed bytes begin and end in the file."""

    values: int
    begin: int
    end: int


def chunks_of(path: Path, most: int) -> list[list[Chunk]]:
    """Return the columns of every row group, from the footer.

    Raises:
        ValueError: the footer is damaged, or there are more than ``most`` columns in all.
        LookupError: it is cut off, or a column does not say where it lies.
    """
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-8 - size, os.SEEK_END)
        footer = Compact(file.read(size), 2 * most).struct(_FOOTER)
    return [[_chunk(column[_COLUMN]) for column in group[_COLUMNS]] for group in footer[_ROW_GROUPS]]


def _chunk(told: Struct) -> Chunk:
    begin, dictionary = told[_FIRST_DATA], told.get(_FIRST_DICTIONARY, 0)
    if 0 < dictionary < begin:
        begin = dictionary
    return Chunk(told[_VALUES], begin, begin + told[_PACKED])


@dataclass(slots=True)
class Pages:
    """The pages of one column in one row group: bytes unpacked, and values with nulls and empty lists."""

    count: int = 0
    values: int = 0
    data_bytes: int = 0
    dictionary_bytes: int = 0
    dictionary_values: int = 0
    largest_bytes: int = 0
    largest_mean_bytes: int = 0
    encodings: set[int] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        """Return what all of them unpack to."""
        return self.data_bytes + self.dictionary_bytes

    @property
    def shares_prefixes(self) -> bool:
        """Say whether values are written as what they share with the one before, so few bytes can be many."""
        return _DELTA_BYTE_ARRAY in self.encodings

    def add(self, header: Struct) -> int:
        """Count one page and return its packed bytes; raise ValueError or LookupError if there is none."""
        kind, unpacked, packed = header[1], header[2], header[3]
        described, encoding = _DESCRIBED.get(kind, (0, 0))
        size = max(unpacked, packed)
        self.count += 1
        self.largest_bytes = max(self.largest_bytes, size)
        values = header[described][1] if described else 0
        if min(unpacked, packed, values) < 0:
            raise ValueError("a page of less than nothing")
        if not described:
            return packed
        if kind == _DICTIONARY:
            self.dictionary_bytes += size
            self.dictionary_values += values
            return packed
        self.values += values
        self.data_bytes += size
        self.largest_mean_bytes = max(self.largest_mean_bytes, size // max(1, values))
        self.encodings.add(header[described][encoding])
        return packed


def pages_of(file: int, chunk: Chunk, most: int) -> Pages:
    """Count the pages of a column.

    Args:
        file: descriptor of the parquet file.
        chunk: the column.
        most: how many pages are looked at.

    Raises:
        ValueError: a header is damaged, or there are more pages.
        LookupError: a header does not say what it must.
    """
    found = Pages()
    for header, behind in _headers(file, chunk, found):
        if found.count >= most:
            raise ValueError("too many pages")
        if behind + found.add(header) > chunk.end:
            raise ValueError("a page reaches beyond its column")
    return found


def _headers(file: int, chunk: Chunk, found: Pages) -> Iterator[tuple[Struct, int]]:
    """Yield each header and where it ends; Arrow, too, goes on until it has seen all values."""
    at = chunk.begin
    while found.values < chunk.values and at < chunk.end:
        header, length = _header_at(file, at)
        yield header, at + length
        at += length + header[3]


def _header_at(file: int, at: int) -> tuple[Struct, int]:
    size = _FIRST_BYTES
    while True:
        window = os.pread(file, size, at)
        try:
            reader = Compact(window, 0)
            return reader.struct(_PAGE), reader.position
        except IndexError:
            if len(window) < size or size >= _MAX_HEADER_BYTES:
                raise ValueError("a page header is cut off") from None
        size *= 16
