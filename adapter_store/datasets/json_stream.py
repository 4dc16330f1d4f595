"""Read JSON records of unknown size with bounded memory.

Three layouts are told by content: one object per line (JSONL), an array of
objects, and an object that holds the array under ``examples`` or ``data``. No
more than one record, and never a whole file, is held at a time.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapter_store.datasets.records import MIB, shown

_CHUNK_CHARS = MIB
_HEAD_CHARS = 64 * 1024
# More commas than this in one long record mean millions of values, not a conversation.
_MAX_COMMAS = 500_000
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = r'"(?:[^"\\]|\\.)*"'
_WRAPPED = re.compile(
    rf'\s*\{{\s*(?:{_STRING}\s*:\s*(?:{_STRING}|-?[\d.eE+]+|true|false|null)\s*,\s*)*"(?:examples|data)"\s*:\s*\['
)
# Undecodable bytes become a lone surrogate, so that only the record they are in is refused.
_MARK_BAD_BYTES = "strata-mark-bad-bytes"
codecs.register_error(_MARK_BAD_BYTES, lambda error: ("\udc80", getattr(error, "end", 0)))
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One value of a data file, or the reason why it cannot be read.

    ``line`` is where it starts, from 1; ``index`` its place in an array, from 0,
    None for JSONL. Exactly one of ``value`` and ``reason`` is of use.
    """

    line: int
    index: int | None
    value: Any = None
    reason: str | None = None

    @property
    def prefix(self) -> str:
        """Return "[12]." for an element of an array, else nothing."""
        return "" if self.index is None else f"[{self.index}]."


def detect_encoding(head: bytes) -> tuple[str, int]:
    """Return the encoding that a byte order mark names, and the mark's length."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name, len(mark)
    return "utf-8", 0


def looks_like_json(head: bytes) -> bool:
    """Say whether a file's first bytes hold JSON: it begins with it, or a line of them begins an object.

    A broken first line must not hide the faults of those after it; nor must empty lines.
    """
    encoding, skip = detect_encoding(head)
    text = head[skip:].decode(encoding, "ignore").lstrip()
    return not text or text[0] in "{[" or any(line.lstrip().startswith("{") for line in text.splitlines())


def read_records(path: Path, max_record_bytes: int) -> Iterator[Record]:
    """Yield every record of a JSON or JSONL file in order.

    A broken line of JSONL is one faulty record and reading goes on. In an array
    there is no place to go on from, so the first broken record is the last.
    """
    with path.open("rb") as raw:
        encoding, skip = detect_encoding(raw.read(4))
    with path.open("r", encoding=encoding, errors=_MARK_BAD_BYTES, newline="\n") as stream:
        head = stream.read(_HEAD_CHARS).removeprefix("\ufeff")
    with path.open("r", encoding=encoding, errors=_MARK_BAD_BYTES, newline="\n") as stream:
        if skip:
            stream.read(1)
        wrapped = _WRAPPED.match(head)
        if wrapped:
            stream.read(wrapped.end() - 1)
            line = head.count("\n", 0, wrapped.end()) + 1
            yield from _array(stream, max_record_bytes, line, _rest_of_object)
        elif head.lstrip().startswith("["):
            yield from _array(stream, max_record_bytes, 1, _nothing_more)
        elif _is_spread(head):
            yield from _spread(stream, max_record_bytes)
        else:
            yield from _lines(stream, max_record_bytes)


def _is_spread(head: str) -> bool:
    """Say whether one object is written over several lines, as pretty printers do."""
    first = head.lstrip().partition("\n")
    return bool(first[1]) and first[0].rstrip()[-1:] in ("{", "[", ",")


def _lines(stream: IO[str], limit: int) -> Iterator[Record]:
    number = 0
    while True:
        line = stream.readline(limit + 1)
        if not line:
            return
        number += 1
        if len(line) > limit and not line.endswith("\n"):
            while line and not line.endswith("\n"):
                line = stream.readline(_CHUNK_CHARS)
            yield Record(number, None, reason=f"the line is longer than {limit} bytes")
        elif line.strip():
            yield _parse_line(line, number)


def _parse_line(line: str, number: int) -> Record:
    reason = _text_fault(line)
    if reason is None and len(line) > 2 * _CHUNK_CHARS and line.count(",") > _MAX_COMMAS:
        reason = "the record holds too many values"
    if reason is None:
        try:
            return Record(number, None, json.loads(line))
        except json.JSONDecodeError as error:
            reason = f"not valid JSON at column {error.colno}: {error.msg}"
        except RecursionError:
            reason = "the JSON is nested too deeply"
        except ValueError:
            reason = "a number in the record is too long"
    return Record(number, None, reason=reason)


def _text_fault(text: str) -> str | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return "bytes that are not UTF-8; save the whole file as UTF-8"
    return None


class _Window:
    """The part of a stream that is being parsed: a buffer, a position and a line count."""

    def __init__(self, stream: IO[str], limit: int, line: int) -> None:
        self.stream = stream
        self.limit = limit
        self.buffer = ""
        self.position = 0
        self.ended = False
        self._line = line
        self._counted = 0

    def line(self) -> int:
        """Return the line number of the present position."""
        self._line += self.buffer.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def more(self) -> None:
        """Drop what was parsed and read on, doubling so that a long record costs linear time."""
        self.line()
        rest = self.buffer[self.position :]
        chunk = self.stream.read(max(_CHUNK_CHARS, len(rest)))
        self.ended = not chunk
        self.buffer = rest + chunk
        self.position = self._counted = 0

    def peek(self) -> str:
        """Skip white space and return the next character, or "" at the end."""
        while True:
            space = _SPACE.match(self.buffer, self.position)
            self.position = space.end() if space else self.position
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if self.ended:
                return ""
            self.more()

    def value(self) -> tuple[Any, str | None]:
        """Parse one JSON value at the position; return it and None, or None and a reason."""
        while True:
            size = len(self.buffer) - self.position
            if size > 2 * _CHUNK_CHARS and self.buffer.count(",", self.position) > _MAX_COMMAS:
                return None, "the record holds too many values"
            try:
                found, end = _DECODER.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                if self.ended or not _cut_short(error, len(self.buffer)):
                    return None, f"not valid JSON: {error.msg}"
            except RecursionError:
                return None, "the JSON is nested too deeply"
            except ValueError:
                return None, "a number in the record is too long"
            else:
                text = self.buffer[self.position : end]
                self.position = end
                return found, _text_fault(text)
            if size > self.limit:
                return None, f"the record is longer than {self.limit} bytes"
            self.more()


_DECODER = json.JSONDecoder()


def _cut_short(error: json.JSONDecodeError, length: int) -> bool:
    """Say whether a fault may come only from the end of the buffer."""
    return error.msg.startswith("Unterminated string") or error.pos >= length - 16


def _array(stream: IO[str], limit: int, line: int, rest: Callable[[_Window], str | None]) -> Iterator[Record]:
    """Yield the elements of an array; ``rest`` says what is wrong with what follows it."""
    window = _Window(stream, limit, line)
    window.peek()
    window.position += 1  # the opening bracket
    index = 0
    while window.peek() != "]" or index:
        line = window.line()
        value, reason = window.value()
        yield Record(line, index, value, reason)
        if reason is not None and not _is_text_only(reason):
            return
        following = window.peek()
        if following == "]":
            break
        if following != ",":
            what = "the file ends inside the array" if not following else "a comma or ] is missing"
            yield Record(window.line(), index, reason=f"not valid JSON: {what}; nothing after it was read")
            return
        window.position += 1
        window.peek()
        index += 1
    window.position += 1  # the closing bracket
    fault = rest(window)
    if fault is not None:
        yield Record(window.line(), None, reason=f"{fault}; nothing after it was read")


def _nothing_more(window: _Window) -> str | None:
    if window.peek():
        return "something follows the end of the array: put all records into one array"
    return None


def _rest_of_object(window: _Window) -> str | None:
    """Read the other members of the object that holds the array; none may hold records, too."""
    while (following := window.peek()) == ",":
        window.position += 1
        window.peek()
        key, reason = window.value()
        if reason is None and window.peek() != ":":
            reason = "not valid JSON: a name and a colon are missing"
        if reason is not None:
            return reason
        window.position += 1
        window.peek()
        value, reason = window.value()
        if reason is not None:
            return reason
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            return f'records lie under "{shown(str(key))}", too: put all of them into one array'
    if following != "}":
        return "not valid JSON: the object that holds the records does not end"
    window.position += 1
    return "something follows the end of the object" if window.peek() else None


def _is_text_only(reason: str) -> bool:
    return reason.startswith("bytes that")


def _spread(stream: IO[str], limit: int) -> Iterator[Record]:
    window = _Window(stream, limit, 1)
    while window.peek():
        line = window.line()
        value, reason = window.value()
        yield Record(line, None, value, reason)
        if reason is not None and not _is_text_only(reason):
            return
