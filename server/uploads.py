"""Receive uploads: parts stream from the socket into files of the home folder, never into memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from adapter_store.errors import ImageError, InputError
from adapter_store.images import MAX_BYTES
from server.pools import Run

_MAX_FIELDS = 64
_MAX_FILES = 8
_MAX_FIELD_BYTES = 256 * 1024
_MAX_HEADER_BYTES = 8 * 1024
_FLUSH_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """One received file: where it lies until the request ends, and what the client calls it."""

    path: Path
    filename: str
    content_type: str
    bytes: int

    def read_picture(self) -> bytes:
        """Return the content of a picture part; raise ImageError if it is larger than any picture may be."""
        if self.bytes > MAX_BYTES:
            raise ImageError(
                f"the picture has {self.bytes} bytes; at most {MAX_BYTES} are accepted", param="image"
            )
        return self.path.read_bytes()


@dataclass(slots=True)
class Form:
    """The parts of one multipart body."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, UploadedFile] = field(default_factory=dict)

    def file(self, *names: str) -> UploadedFile:
        """Return the file of the first name present; raise InputError if there is none."""
        for name in names:
            if name in self.files:
                return self.files[name]
        raise InputError(
            f"the form has no file part {names[0]!r}; send it as -F {names[0]}=@path", param=names[0]
        )


def is_multipart(request: Request) -> bool:
    """Tell whether the body is a multipart form."""
    return request.headers.get("content-type", "").strip().lower().startswith("multipart/form-data")


@asynccontextmanager
async def received_form(request: Request, folder: Path, run: Run) -> AsyncIterator[Form]:
    """Receive a multipart body into files under ``folder``; they are removed when the context ends.

    Args:
        request: Whose body is received.
        folder: Where the files go.
        run: Runs what writes to disk in a thread, as ``asyncio.to_thread`` does.

    Raises:
        InputError: not multipart, broken, too many parts or too large a field.
    """
    boundary = _boundary(request.headers.get("content-type", ""))
    async with scratch_folder(folder, "upload-", run) as scratch:
        reader = _FormReader(boundary, scratch)
        try:
            buffer = bytearray()
            async for chunk in request.stream():
                buffer += chunk
                if len(buffer) >= _FLUSH_BYTES:
                    await run(reader.write, bytes(buffer))
                    buffer.clear()
            await run(reader.write, bytes(buffer))
            form = reader.finish()
        except FormParserError:
            raise InputError("the multipart body is broken; send it with a form library or curl -F") from None
        finally:
            reader.close()
        yield form


@asynccontextmanager
async def scratch_folder(parent: Path, prefix: str, run: Run) -> AsyncIterator[Path]:
    """Yield a new folder under ``parent``; ``run`` removes it with all that is in it, which may take long."""
    await run(parent.mkdir, parents=True, exist_ok=True)
    folder = Path(await run(tempfile.mkdtemp, dir=parent, prefix=prefix))
    try:
        yield folder
    finally:
        await run(shutil.rmtree, folder, ignore_errors=True)


def sweep(folder: Path, older_than_seconds: float = 24 * 3600) -> None:
    """Remove what uploads left behind when their process was killed."""
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > older_than_seconds:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind.lower() != b"multipart/form-data" or not 0 < len(boundary) <= 256:
        raise InputError("the body must be multipart/form-data with a boundary; curl -F sends that")
    return boundary


class _FormReader:
    """Drive the push parser and keep the part that is open."""

    def __init__(self, boundary: bytes, scratch: Path) -> None:
        self._scratch = scratch
        self._form = Form()
        self._count = 0
        self._complete = False
        self._headers: dict[bytes, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._header_bytes = 0
        self._name = ""
        self._filename = ""
        self._content_type = ""
        self._sink: IO[bytes] | None = None
        self._value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def write(self, data: bytes) -> None:
        """Feed the next bytes."""
        if data:
            self._parser.write(data)

    def finish(self) -> Form:
        """Return the form; raise InputError if its closing boundary never came."""
        self._parser.finalize()
        if not self._complete:
            raise InputError("the multipart body ends early: its closing boundary is missing; send it again")
        return self._form

    def close(self) -> None:
        """Close a file that is still open after a fault."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def _on_part_begin(self) -> None:
        self._count += 1
        if self._count > _MAX_FIELDS:
            raise InputError(f"the form has more than {_MAX_FIELDS} parts; send an archive instead")
        self._headers = {}
        self._header_bytes = 0
        self._value = bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._bound_headers(end - start)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._bound_headers(end - start)

    def _bound_headers(self, more: int) -> None:
        self._header_bytes += more
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise InputError(f"the headers of a form part are larger than {_MAX_HEADER_BYTES} bytes")

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name")
        if name is None:
            raise InputError("a form part has no name; use Content-Disposition: form-data; name=...")
        self._name = name.decode("utf-8", "replace")[:80]
        self._content_type = self._headers.get(b"content-type", b"").decode("latin-1")[:120]
        if b"filename" in options:
            self._open(options[b"filename"].decode("utf-8", "replace"))

    def _open(self, filename: str) -> None:
        if len(self._form.files) >= _MAX_FILES:
            raise InputError(f"the form has more than {_MAX_FILES} files; send an archive instead")
        self._filename = safe_filename(filename)
        descriptor, path = tempfile.mkstemp(dir=self._scratch, prefix="part-")
        self._path = Path(path)
        self._sink = os.fdopen(descriptor, "wb")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(memoryview(data)[start:end])
            return
        if len(self._value) + end - start > _MAX_FIELD_BYTES:
            raise InputError(f"the form field {self._name!r} is larger than {_MAX_FIELD_BYTES} bytes")
        self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._name in self._form.files or self._name in self._form.fields:
            raise InputError(f"the form has the part {self._name!r} twice; send it once")
        if self._sink is None:
            self._form.fields[self._name] = _text(bytes(self._value), self._name)
            return
        self._sink.close()
        self._sink = None
        size = self._path.stat().st_size
        self._form.files[self._name] = UploadedFile(self._path, self._filename, self._content_type, size)

    def _on_end(self) -> None:
        self._complete = True


def safe_filename(name: str) -> str:
    """Return the last part of a client's file name, printable, at most 120 characters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(char for char in last if char.isprintable()).strip()[-120:]
    return kept if kept not in ("", ".", "..") else "upload"


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"the form field {name!r} is not UTF-8 text", param=name) from None


def form_number(fields: dict[str, str], name: str, kind: type[Any]) -> Any:
    """Return the field as ``kind`` (int or float), None if absent; raise InputError if it is neither."""
    if name not in fields or not fields[name].strip():
        return None
    try:
        return kind(fields[name])
    except ValueError:
        raise InputError(f"{name} is not a number", param=name) from None
