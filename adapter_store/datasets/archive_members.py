"""Walk the members of zip, tar and tar.gz files without trusting their headers."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from adapter_store.datasets.records import MIB, FaultList, Limits, shown

BLOCK_BYTES = 256 * 1024
HEAD_BYTES = 512
_NESTED = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z",
           b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "zstd"}  # fmt: skip
_EXTENDED_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                     tarfile.GNUTYPE_LONGLINK)  # fmt: skip


# What zipfile, tarfile and gzip raise on damaged bytes; a full disk (OSError) is not among them.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
)


Reached = Callable[[int], None]
"""Is told how many bytes of the archive itself are behind us."""


class Refused(Exception):
    """Stop reading an archive; the text is the fault."""


class Readable(Protocol):
    """What a member's content offers."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        ...


def archive_kind(head: bytes) -> str | None:
    """Return "zip", "tar", "gzip" or the name of a kind that is not read, or None for no archive."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[257:262] == b"ustar":
        return "tar"
    for mark, kind in _NESTED.items():
        if head.startswith(mark):
            return kind
    return None


def zip_members(
    path: Path, limits: Limits, faults: FaultList, reached: Reached
) -> Iterator[tuple[str, Readable]]:
    """Yield name and content of every plain file of a zip; note the others as faults."""
    _check_central_directory(path, limits)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            reached(info.header_offset)
            if info.is_dir():
                continue
            name = _zip_name(info)
            reason = _zip_fault(info)
            if reason:
                faults.add(None, "file", reason, file=name)
                continue
            try:
                stream = archive.open(info)
            except DAMAGE:
                faults.add(None, "file", "the member is damaged or cut off", file=name)
                continue
            with stream:
                yield name, stream


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the true name: zipfile cuts it at NUL and reads unmarked UTF-8 as cp437."""
    name = info.orig_filename
    if info.flag_bits & 0x800:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _zip_fault(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    if info.create_system == 3 and mode & 0o170000 == 0o120000:
        return "a symbolic link is not followed; pack the file itself"
    if info.flag_bits & 0x1:
        return "the member is encrypted; pack it without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "only stored and deflated members are read; pack the zip with deflate"
    return None


def _check_central_directory(path: Path, limits: Limits) -> None:
    """Count a zip's members on disk first: zipfile would build an object for each of millions."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 65_557))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < 22:
            raise Refused("the zip archive is cut off: its table of contents is missing")
        end = size - len(tail) + at
        length = struct.unpack_from("<I", tail, at + 12)[0]
        locator = tail.rfind(b"PK\x06\x07", 0, at)
        if locator >= 0 and at - locator == 20:
            end -= 76  # where zipfile looks for it: right before its 20-byte locator
            if end < 0 or struct.unpack_from("<Q", tail, locator + 8)[0] != end:
                raise Refused("the zip archive is damaged: its 64-bit table of contents is not in place")
            file.seek(end)
            record = file.read(56)
            length = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else 0
        if length > end:
            raise Refused("the zip archive is damaged: its table of contents is longer than the file")
        file.seek(end - length)
        count = _count_entries(file, length, limits.max_members)
    if count > limits.max_members:
        raise Refused(f"the archive has more than {limits.max_members} members")


def _count_entries(file: BinaryIO, length: int, limit: int) -> int:
    count = position = 0
    while position + 46 <= length and count <= limit:
        entry = file.read(46)
        if len(entry) < 46 or entry[:4] != b"PK\x01\x02":
            break
        skip = sum(struct.unpack_from("<HHH", entry, 28))
        file.seek(skip, io.SEEK_CUR)
        position += 46 + skip
        count += 1
    return count


class _StrictTarInfo(tarfile.TarInfo):
    """Refuse headers that make tarfile hold a huge name or a sparse file in memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        """Parse one 512-byte header block."""
        info = super().frombuf(buf, encoding, errors)
        if info.type in _EXTENDED_HEADERS and info.size > MIB:
            raise Refused("the tar archive has an extended header of more than 1 MiB")
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise Refused("the tar archive holds a sparse file; pack it without sparse support")
        return info


def tar_members(
    path: Path, limits: Limits, faults: FaultList, reached: Reached
) -> Iterator[tuple[str, Readable]]:
    """Yield name and content of every plain file of a tar; note the others as faults."""
    with path.open("rb") as stream:
        for member in _tar_stream(stream, limits, faults):
            reached(stream.tell())
            yield member


def _tar_stream(stream: Any, limits: Limits, faults: FaultList) -> Iterator[tuple[str, Readable]]:
    count = 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo) as archive:
        for info in archive:
            count += 1
            if count > limits.max_members:
                raise Refused(f"the archive has more than {limits.max_members} members")
            if info.isdir():
                continue
            content = archive.extractfile(info) if info.isreg() else None
            if content is None:
                kind = "a link is not followed" if info.issym() or info.islnk() else "a device is not read"
                faults.add(None, "file", f"{kind}; pack the file itself", file=info.name)
                continue
            yield info.name, content


class _Watched(io.RawIOBase):
    """Pass reads on from a gzip stream and stop when it has grown too far."""

    def __init__(self, stream: Readable, allowed: int) -> None:
        super().__init__()
        self._stream = stream
        self._allowed = self._left = allowed

    def readable(self) -> bool:
        """Say that this stream can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read at most ``size`` bytes.

        Raises:
            Refused: more than the allowed bytes came out.
        """
        block = self._stream.read(size if size >= 0 else BLOCK_BYTES)
        self._left -= len(block)
        if self._left < 0:
            raise Refused(
                f"the archive unpacks to more than {self._allowed} bytes, too much for its packed size or "
                "for STRATA_MAX_UPLOAD_BYTES; it is not read further"
            )
        return block


def gzip_members(
    path: Path, limits: Limits, faults: FaultList, reached: Reached
) -> Iterator[tuple[str, Readable]]:
    """Yield the members of a tar.gz, or the one file that a plain gzip holds."""
    with gzip.open(path, "rb") as probe:
        head = probe.read(HEAD_BYTES)
    inner = archive_kind(head)
    packed = path.stat().st_size
    allowed = min(
        limits.max_total_bytes, max(limits.free_expansion_bytes, int(packed * limits.max_expansion))
    )
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as stream:
        watched = _Watched(stream, allowed + limits.max_members * 1024)
        if inner == "tar":
            for member in _tar_stream(watched, limits, faults):
                reached(raw.tell())
                yield member
        elif inner:
            raise Refused(f"a {inner} archive inside gzip is not read; pack the data as zip or tar.gz")
        else:
            yield shown(path.stem) or "data", watched
