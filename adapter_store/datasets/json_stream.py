"""Read JSON records of unknown size with bounded memory.

Three layouts are told by content: one object per line (JSONL), an array of
objects, and an object that holds the array under ``examples`` or ``data``. No
more than one record, and never a whole file, is held at a time.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapter_store.datasets.records import MIB, shown

_CHUNK_CHARS = MIB
_HEAD_CHARS = 64 * 1024
_SEARCHED_LINES = 1_000
# More commas than this in one long record mean millions of values, not a conversation.
_MAX_COMMAS = 500_000
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = r'"(?:[^"\\]|\\.)*"'
_WRAPPED = re.compile(
    rf'\s*\{{\s*(?:{_STRING}\s*:\s*(?:{_STRING}|-?[\d.eE+]+|true|false|null)\s*,\s*)*"(?:examples|data)"\s*:\s*\['
)
# A line that begins a record, or an array of some: prose and CSV have no such lines.
_RECORD_LINE = re.compile(r'\s*(?:\{\s*(?:["}]|$)|\[\s*(?:["\[{\]]|$))')
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

    ``line`` is where it starts, from 1, None where there are no lines; ``index`` its
    place in an array, from 0, None for JSONL. Exactly one of ``value`` and ``reason`` is of use.
    ``is_row``: it has the columns of its file, so one that it lacks is in no record of that.
    """

    line: int | None
    index: int | None
    value: Any = None
    reason: str | None = None
    is_row: bool = False

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


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """Open a file as text in the encoding that its byte order mark names, behind the mark; else as given."""
    with path.open("rb") as raw:
        marked, skip = detect_encoding(raw.read(4))
    encoding = marked if skip else encoding
    with path.open("r", encoding=encoding, errors=_MARK_BAD_BYTES, newline="\n") as stream:
        if skip:
            stream.read(1)
        yield stream


def looks_like_json(path: Path) -> bool:
    """Say whether a file is JSON or JSONL by content, also if its first lines are broken."""
    with open_text(path) as stream:
        first = True
        for _ in range(_SEARCHED_LINES):
            line = stream.readline(_HEAD_CHARS)
            while line.isspace():
                line = stream.readline(_HEAD_CHARS)
            if (first and line.lstrip()[:1] in ("{", "[")) or _RECORD_LINE.match(line):
                return True
            if not line or "\0" in line:
                return False
            first = False
    return False


def read_records(path: Path, max_record_bytes: int) -> Iterator[Record]:
    """Yield every record of a JSON or JSONL file in order; what belongs to no record is a faulty record.

    A broken line of JSONL is one faulty record and reading goes on. In an array
    there is no place to go on from, so the first broken record is the last.
    """
    with open_text(path) as stream:
        window = _Window(stream, max_record_bytes, 1)
        head = window.head()
        wrapped = _WRAPPED.match(head)
        if wrapped:
            window.position += wrapped.end() - 1
            yield from _array(window, wrapped=True)
            return
        if head.startswith("["):
            yield from _array(window, wrapped=False)
            return
        if _is_spread(head):
            yield from _spread(window)
            return
    with open_text(path) as stream:
        yield from _lines(stream, max_record_bytes)


def _is_spread(head: str) -> bool:
    """Say whether one object is written over several lines, as pretty printers do."""
    first = head.partition("\n")
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
    reason = text_fault(line)
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


def text_fault(text: str) -> str | None:
    """Say whether text holds bytes that were no text in the file's encoding."""
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

    def head(self) -> str:
        """Return what follows the white space at the position, up to some KiB of it."""
        self.peek()
        if len(self.buffer) - self.position < _HEAD_CHARS and not self.ended:
            self.more()
        return self.buffer[self.position : self.position + _HEAD_CHARS]

    def next_object(self) -> bool:
        """Go to the next line that begins with an opening brace; say whether there is one."""
        while True:
            found = self.buffer.find("\n{", self.position)
            if found >= 0:
                self.position = found + 1
                return True
            self.position = max(
                self.position, len(self.buffer) - 1
            )  # its end may be half of what is looked for
            if self.ended:
                return False
            self.more()

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
                return found, text_fault(text)
            if size > self.limit:
                return None, f"the record is longer than {self.limit} bytes"
            self.more()


_DECODER = json.JSONDecoder()


def _cut_short(error: json.JSONDecodeError, length: int) -> bool:
    """Say whether a fault may come only from the end of the buffer."""
    return error.msg.startswith("Unterminated string") or error.pos >= length - 16


def _array(window: _Window, *, wrapped: bool) -> Iterator[Record]:
    """Yield the elements of the array at the position, and a faulty record for anything behind it."""
    window.position += 1  # the opening bracket
    index = 0
    following = window.peek()
    while following != "]":
        line = window.line()
        value, reason = window.value()
        yield Record(line, index, value, reason)
        if reason is not None and not _is_text_only(reason):
            return
        following = window.peek()
        if following not in (",", "]"):
            what = "the file ends inside the array" if not following else "a comma or ] is missing"
            yield Record(window.line(), index, reason=f"not valid JSON: {what}; nothing after it was read")
            return
        if following == ",":
            window.position += 1
            window.peek()
            index += 1
    window.position += 1  # the closing bracket
    reason = _wrapper_fault(window) if wrapped else None
    if reason is None and window.peek():
        reason = (
            "something follows the end of the array; a file holds one array, or one object per line. "
            "Nothing from here on was read"
        )
    if reason is not None:
        yield Record(window.line(), None, reason=reason)


def _wrapper_fault(window: _Window) -> str | None:
    """Read what follows the array up to the wrapper's closing brace; return what is wrong with it."""
    while window.peek() == ",":
        window.position += 1
        window.peek()
        name, reason = window.value()
        if reason is not None or not isinstance(name, str) or window.peek() != ":":
            return (
                f"not valid JSON: {reason or 'a name and a colon must come here'}; nothing after it was read"
            )
        window.position += 1
        window.peek()
        value, reason = window.value()
        if reason is not None:
            return f"{reason}; nothing after it was read"
        if isinstance(value, (list, dict)):
            return f'the field "{shown(name, 40)}" beside the examples is not read; put all into one array'
    following = window.peek()
    if following == "}":
        window.position += 1
        return None
    what = (
        "the file ends before the closing }" if not following else "a comma or } is missing behind the array"
    )
    return f"not valid JSON: {what}"


def _is_text_only(reason: str) -> bool:
    return reason.startswith("bytes that")


def _spread(window: _Window) -> Iterator[Record]:
    """Yield objects that are written over several lines; behind a broken one, go on at the next."""
    while window.peek():
        line = window.line()
        value, reason = window.value()
        yield Record(line, None, value, reason)
        if reason is not None and not _is_text_only(reason) and not window.next_object():
            return
