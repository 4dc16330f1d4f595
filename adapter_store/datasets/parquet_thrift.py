"""Read the few numbers that are wanted from Thrift's compact protocol, in which parquet describes itself.

pyarrow shows some of them, too, but ends the process where its C++ part refuses a damaged column.
"""

from __future__ import annotations

from typing import Any

I32, I64 = 5, 6
_BINARY, _LIST, _SET, _MAP, _STRUCT = 8, 9, 10, 11, 12
_FIXED_BYTES = {3: 1, 7: 8}
_VARINTS = (4, I32, I64)
_BOOLEANS = (1, 2)
_MAX_DEPTH = 16

Wanted = dict[int, "int | Wanted | list[Wanted]"]
"""What to keep of a struct: numbers of fields, each with its type as a number, or with what to keep of it."""
Struct = dict[int, Any]
"""What was kept: numbers, structs and lists of structs, as they were wanted."""


class Compact:
    """Read structs behind each other; fields of another type than wanted are passed over, as Arrow does."""

    def __init__(self, data: bytes, most_listed: int) -> None:
        """Read from ``data``; lists that are wanted may have ``most_listed`` structs together."""
        self._data = data
        self._most_listed = most_listed
        self.position = 0

    def struct(self, wanted: Wanted, depth: int = 0) -> Struct:
        """Return what is wanted of the next struct.

        Raises:
            IndexError: the bytes end in it.
            ValueError: it is damaged, nested too deeply or too long.
        """
        fields: Struct = {}
        number = 0
        while (head := self._byte()) != 0:
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else _signed(self._varint(), 16)
            form = wanted.get(number)
            if form is None or kind != _type_of(form):
                self._pass_over_field(kind, depth)
                continue
            if number in fields:
                raise ValueError("a field is there twice")  # what counts then differs from reader to reader
            fields[number] = self._kept(form, kind, depth)
        return fields

    def _kept(self, form: int | Wanted | list[Wanted], kind: int, depth: int) -> int | Struct | list[Struct]:
        if isinstance(form, dict):
            return self.struct(form, _deeper(depth))
        if isinstance(form, list):
            return self._structs(form[0], _deeper(depth))
        return _signed(self._varint(), 32 if kind == I32 else 64)

    def _structs(self, wanted: Wanted, depth: int) -> list[Struct]:
        count = self._list_head()[1]
        self._most_listed -= count
        if self._most_listed < 0:
            raise ValueError("a list is too long")
        return [self.struct(wanted, depth) for _ in range(count)]

    def _pass_over_field(self, kind: int, depth: int) -> None:
        if kind not in _BOOLEANS:  # of a field, its type is the value
            self._pass_over(kind, depth)

    def _pass_over(self, kind: int, depth: int) -> None:
        if kind in _BOOLEANS:
            self._forward(1)
        elif kind in _VARINTS:
            self._varint()
        elif kind in _FIXED_BYTES:
            self._forward(_FIXED_BYTES[kind])
        elif kind == _BINARY:
            self._forward(self._varint())
        elif kind == _STRUCT:
            self.struct({}, _deeper(depth))
        elif kind in (_LIST, _SET):
            element, count = self._list_head()
            for _ in range(count):
                self._pass_over(element, _deeper(depth))
        elif kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._pass_over(kinds >> 4, _deeper(depth))
                self._pass_over(kinds & 15, _deeper(depth))
        else:
            raise ValueError("no such type")

    def _list_head(self) -> tuple[int, int]:
        head = self._byte()
        return head & 15, self._varint() if head >> 4 == 15 else head >> 4

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


def _type_of(form: int | Wanted | list[Wanted]) -> int:
    if isinstance(form, dict):
        return _STRUCT
    return _LIST if isinstance(form, list) else form


def _deeper(depth: int) -> int:
    if depth >= _MAX_DEPTH:
        raise ValueError("nested too deeply")
    return depth + 1


def _signed(value: int, bits: int) -> int:
    """Return the number that a zigzag code of so many bits stands for."""
    value &= (1 << bits) - 1
    return (value >> 1) ^ -(value & 1)
