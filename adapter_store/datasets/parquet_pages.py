"""Read what the page headers of a parquet file claim, before any page is unpacked.

The footer's own sums bind nobody: pages are unpacked into as many bytes as their headers say. The headers
are walked as Arrow walks them and with the types that it takes, so both see the same pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_I32, _BINARY, _STRUCT = 5, 8, 12
_LISTS, _MAP = (9, 10), 11
_FIXED_BYTES = {3: 1, 7: 8}
_VARINTS = (4, _I32, 6)
_BOOLEANS = (1, 2)
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
# Which field of a page header describes a page of each type, and which field in it is the encoding.
_DESCRIBED = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}
_DELTA_BYTE_ARRAY = 7
_FIRST_BYTES = 4096
_MAX_HEADER_BYTES = 1 << 20
_MAX_DEPTH = 8

Struct = dict[int, "int | Struct"]


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
        """Count one page and return its packed size in bytes; raise ValueError if there is no such page."""
        unpacked, packed, kind = header.get(2), header.get(3), header.get(1)
        if not (isinstance(unpacked, int) and isinstance(packed, int)) or min(unpacked, packed) < 0:
            raise ValueError("a page without a size")
        described, encoding = _DESCRIBED.get(kind, (0, 0)) if isinstance(kind, int) else (0, 0)
        inner = header.get(described)
        size = max(unpacked, packed)
        self.count += 1
        self.largest_bytes = max(self.largest_bytes, size)
        if not isinstance(inner, dict):
            return packed
        values, code = inner.get(1), inner.get(encoding)
        if not (isinstance(values, int) and isinstance(code, int)) or values < 0:
            raise ValueError("a page without a count")
        if kind == _DICTIONARY:
            self.dictionary_bytes += size
            self.dictionary_values += values
            return packed
        self.values += values
        self.data_bytes += size
        self.largest_mean_bytes = max(self.largest_mean_bytes, size // max(1, values))
        self.encodings.add(code)
        return packed


def pages_of(file: int, chunk: Any, most: int) -> Pages:
    """Count the pages of a column chunk.

    Args:
        file: descriptor of the parquet file.
        chunk: pyarrow's metadata of the chunk.
        most: how many pages are looked at.

    Raises:
        ValueError: a header is damaged, or there are more pages.
    """
    found = Pages()
    for header, length, at, end in _headers(file, chunk, found):
        if found.count >= most:
            raise ValueError("too many pages")
        if at + length + found.add(header) > end:
            raise ValueError("a page reaches beyond its column")
    return found


def _headers(file: int, chunk: Any, found: Pages) -> Iterator[tuple[Struct, int, int, int]]:
    """Yield each header with its length, where it begins and where the chunk ends, as Arrow looks at them."""
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset is not None and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    while found.values < chunk.num_values and at < end:
        header, length = _header_at(file, at)
        yield header, length, at, end
        packed = header[3]
        at += length + (packed if isinstance(packed, int) else 0)


def _header_at(file: int, at: int) -> tuple[Struct, int]:
    size = _FIRST_BYTES
    while True:
        window = os.pread(file, size, at)
        try:
            reader = _Compact(window)
            return reader.struct(0), reader.position
        except IndexError:
            if len(window) < size or size >= _MAX_HEADER_BYTES:
                raise ValueError("a page header is cut off") from None
        size *= 16


class _Compact:
    """Read Thrift's compact protocol: structs of 32-bit numbers and structs; all else is passed over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, depth: int) -> Struct:
        """Return the fields of a struct by their numbers; raise IndexError where the bytes end."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: Struct = {}
        number = 0
        while (head := self._byte()) != 0:
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else _signed(self._varint(), 16)
            if kind == _I32:
                fields[number] = _signed(self._varint(), 32)
            elif kind == _STRUCT:
                fields[number] = self.struct(depth + 1)
            elif kind not in _BOOLEANS:
                self._pass_over(kind, depth + 1)
        return fields

    def _pass_over(self, kind: int, depth: int) -> None:
        if kind in _VARINTS:
            self._varint()
        elif kind in _FIXED_BYTES:
            self._forward(_FIXED_BYTES[kind])
        elif kind == _BINARY:
            self._forward(self._varint())
        elif kind == _STRUCT:
            self.struct(depth)
        elif kind in _LISTS:
            head = self._byte()
            self._pass_over_all((head & 15,), self._varint() if head >> 4 == 15 else head >> 4, depth)
        elif kind == _MAP:
            if count := self._varint():
                kinds = self._byte()
                self._pass_over_all((kinds >> 4, kinds & 15), count, depth)
        else:
            raise ValueError("no such type")

    def _pass_over_all(self, kinds: tuple[int, ...], count: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        for _ in range(count):
            for kind in kinds:
                if kind in _BOOLEANS:
                    self._forward(1)
                else:
                    self._pass_over(kind, depth + 1)

    def _byte(self) -> int:
        self._forward(1)
        return self._data[self.position - 1]

    def _forward(self, count: int) -> None:
        self.position += count
        if self.position > len(self._data):
            raise IndexError

    def _varint(self) -> int:
        value = 0
        for place in range(10):
            byte = self._byte()
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                return value
        raise ValueError("a number is too long")


def _signed(value: int, bits: int) -> int:
    """Return the number that a zigzag code of so many bits stands for."""
    value &= (1 << bits) - 1
    return (value >> 1) ^ -(value & 1)
