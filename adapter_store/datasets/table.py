"""Read tables (CSV, TSV) of unknown size with bounded memory.

The first line names the columns. Delimiter (comma, semicolon, tab or bar) and
encoding are told by content: a byte order mark, else UTF-8, else Windows-1252 if
not one line with other than ASCII characters is UTF-8.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from adapter_store.datasets.columns import NEEDED, columns_of, missing_answer
from adapter_store.datasets.json_stream import Record, detect_encoding, open_text, text_fault
from adapter_store.datasets.records import MIB, Limits, shown

TABLE_SUFFIXES = (".csv", ".tsv")
ENDS_OPEN = "a quotation mark is opened and not closed where a cell ends"
_DELIMITERS = (",", ";", "\t", "|")
_HEADER_CHARS = 64 * 1024
_SEARCHED_LINES = 100
# A cell with line breaks goes on over this many lines at most, so that a lone quotation mark costs little.
_JOINED_LINES = 100
_NEEDED = f"the first line must name the columns: {NEEDED}"
_REASONS = {
    "unexpected end": ENDS_OPEN,
    "expected after": "text follows a closing quotation mark; double the quotation marks inside a cell",
    "field limit": f"a cell has more than {csv.field_size_limit()} characters; name the picture by its path",
    "new-line": "a line break stands outside of quotation marks",
}

Say = Callable[[str], None]


def looks_like_table(path: Path) -> bool:
    """Say whether the first line names an answer and a picture or question, by content alone."""
    found = _named_columns(path)
    return "answer" in found and len(found) > 1


def lacks_answer(path: Path) -> bool:
    """Say whether the first line names a picture and a question, and no answer."""
    found = _named_columns(path)
    return {"image", "question"} <= found.keys() and "answer" not in found


def _named_columns(path: Path) -> dict[str, str]:
    encoding, _ = _encoding_of(path, whole=False)
    with open_text(path, encoding) as stream:
        for _ in range(_SEARCHED_LINES):
            line = stream.readline(_HEADER_CHARS)
            if not line:
                break
            if line.strip() and _named_delimiter(line) is None:
                return columns_of(_header(line)[1])
    return {}


def read_table(path: Path, limits: Limits, say: Say) -> Iterator[Record]:
    """Yield every row as a record of the columns that are known, by their own names.

    Args:
        path: the file.
        limits: bounds on a row.
        say: called with what the sender should know and what is no fault.
    """
    encoding, is_guess = _encoding_of(path, whole=True)
    if is_guess:
        say("the table is not UTF-8; it was read as Windows-1252: look at its accents")
    with open_text(path, encoding) as stream:
        yield from _Table(stream, limits, say).records()


class _Table:
    """The lines of a table, of which some may be put back, and what its first line says."""

    def __init__(self, stream: IO[str], limits: Limits, say: Say) -> None:
        self._stream = stream
        self._limits = limits
        self._say = say
        self._waiting: deque[tuple[int, str]] = deque()
        self._number = 0
        self._open_ends = 0
        self._delimiter = ","
        self._names: list[str] = []
        self._used: dict[int, str] = {}
        self._image: str | None = None

    def records(self) -> Iterator[Record]:
        """Yield the rows; without a header there are none, and one faulty record says so."""
        reason = self._read_header()
        if reason is not None:
            yield Record(self._number or 1, None, reason=reason)
            return
        while (line := self._next()) is not None:
            number, text = line
            if not text.strip(f" \r\n{self._delimiter}"):
                continue
            yield self._record(number, text)

    def _read_header(self) -> str | None:
        """Take the columns' names from the first line; return what is wrong with it."""
        named: str | None = None
        while (line := self._next()) is not None:
            text = line[1]
            if named is None and (named := _named_delimiter(text)) is not None:
                continue
            if text.strip():
                if len(text) > _HEADER_CHARS:
                    return f"{_NEEDED}; it has more than {_HEADER_CHARS} characters"
                self._delimiter, self._names = _header(text, named)
                break
        found = columns_of(self._names)
        if "answer" not in found:
            if "image" in found or "question" in found:
                return missing_answer(self._names)
            return f"{_NEEDED}; found: {shown(', '.join(self._names[:6]))}"
        twice = next((name for name in found.values() if self._names.count(name) > 1), None)
        if twice is not None:
            return f'the column "{shown(twice)}" is there twice; nothing was read'
        unread = [shown(name, 24) for name in self._names if name and name not in found.values()]
        if unread:
            more = f" and {len(unread) - 8} more" if len(unread) > 8 else ""
            self._say(f"columns that are not read: {', '.join(unread[:8])}{more}")
        self._used = {self._names.index(name): name for name in found.values()}
        self._image = found.get("image")
        return None

    def _record(self, number: int, text: str) -> Record:
        if len(text) > self._limits.max_record_bytes:
            return Record(
                number, None, reason=f"the line is longer than {self._limits.max_record_bytes} bytes"
            )
        reason = text_fault(text)
        cells: list[str] = []
        if reason is None:
            cells, reason = self._cells(text)
        wanted = len(self._names)
        while reason is None and len(cells) > wanted and not cells[-1].strip():
            cells.pop()
        if reason is None and len(cells) != wanted:
            reason = f"the row has {len(cells)} cells, but the first line names {wanted} columns"
        if reason is not None:
            return Record(number, None, reason=reason)
        row = {name: cells[index] for index, name in self._used.items()}
        if self._image is not None and not row[self._image].strip():
            reason = f'the cell "{shown(self._image)}" names no picture; remove the row, or the column'
            return Record(number, None, reason=reason)
        return Record(number, None, row, is_row=True)

    def _cells(self, text: str) -> tuple[list[str], str | None]:
        """Return the cells of a row that begins with ``text``, or a reason; it may take more lines."""
        cells, reason = _split_row(text, self._delimiter)
        taken: list[tuple[int, str]] = []
        while reason == ENDS_OPEN and self._may_join(len(taken), len(text)):
            line = self._next()
            if line is None:
                break
            taken.append(line)
            text += line[1]
            if '"' in line[1]:
                cells, reason = _split_row(text, self._delimiter)
        if reason == ENDS_OPEN or (taken and (reason or len(cells) != len(self._names))):
            # The mark is a fault of its own line; the lines behind it are rows and are read as such.
            reason = ENDS_OPEN
            self._open_ends += 1
            self._waiting.extendleft(reversed(taken))
        return cells, reason or text_fault(text)

    def _may_join(self, lines: int, characters: int) -> bool:
        return (
            lines < _JOINED_LINES
            and characters <= self._limits.max_record_bytes
            and self._open_ends <= self._limits.max_faults
        )

    def _next(self) -> tuple[int, str] | None:
        """Return the next line and its number; of one that is too long, enough to tell."""
        if self._waiting:
            return self._waiting.popleft()
        limit = self._limits.max_record_bytes
        line = self._stream.readline(limit + 1)
        if not line:
            return None
        self._number += 1
        rest = line
        while len(line) > limit and rest and not rest.endswith("\n"):
            rest = self._stream.readline(MIB)
        return self._number, line


def _encoding_of(path: Path, *, whole: bool) -> tuple[str, bool]:
    """Return the encoding of a table and whether it is a guess."""
    with path.open("rb") as file:
        encoding, mark = detect_encoding(file.read(4))
        if mark:
            return encoding, False
        file.seek(0)
        right = wrong = 0
        while line := file.readline(MIB):
            if not line.isascii() and (line.endswith(b"\n") or len(line) < MIB):
                try:
                    line.decode()
                    right += 1
                except UnicodeDecodeError:
                    wrong += 1
            if not whole and (right or wrong or file.tell() > MIB):
                break
    is_guess = wrong > 0 and not right
    return ("cp1252" if is_guess else "utf-8"), is_guess


def _named_delimiter(line: str) -> str | None:
    """Return the delimiter that Excel writes ahead of a table as ``sep=;``, if this is that line."""
    plain = line.strip("\r\n")
    return plain[4] if len(plain) == 5 and plain.lower().startswith("sep=") else None


def _header(line: str, delimiter: str | None = None) -> tuple[str, list[str]]:
    """Return the delimiter that makes the most known columns of a line, and the columns' names."""
    best: tuple[str, list[str]] = (delimiter or ",", [])
    for candidate in (delimiter,) if delimiter else _DELIMITERS:
        cells, reason = _split_row(line, candidate)
        names = [] if reason else [cell.strip() for cell in cells]
        known, before = len(columns_of(names)), len(columns_of(best[1]))
        if known > before or (known == before and len(names) > len(best[1])):
            best = (candidate, names)
    return best


def _split_row(text: str, delimiter: str) -> tuple[list[str], str | None]:
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        found = next((reason for words, reason in _REASONS.items() if words in str(error)), None)
        return [], found or "the row is not a row of a table"
    return rows[0] if rows else [], None
