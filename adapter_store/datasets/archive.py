"""Unpack zip and tar archives from strangers into one flat folder.

Members are streamed one by one and kept under numbers (pictures in one file), so no
name of the archive ever becomes a path on this machine. Links, devices, nested archives,
names that point outside, too many members and archives that grow without
bound are faults.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from adapter_store.datasets.archive_members import (
    BLOCK_BYTES,
    DAMAGE,
    HEAD_BYTES,
    Reached,
    Readable,
    Refused,
    archive_kind,
    gzip_members,
    tar_members,
    zip_members,
)
from adapter_store.datasets.records import FaultList, Limits
from adapter_store.datasets.spool import Stretch
from adapter_store.images import picture_kind

_DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True)
class Member:
    """One unpacked file: its name in the archive, its first bytes, and where it lies.

    Pictures lie behind each other in one file, all others each in a file of its own.
    """

    name: str
    place: Stretch
    head: bytes

    @property
    def path(self) -> Path:
        """Return the file that this member alone lies in; of no use for pictures."""
        return self.place.path

    @property
    def bytes(self) -> int:
        """Return its size."""
        return self.place.bytes


def unpack(
    path: Path,
    kind: str,
    folder: Path,
    limits: Limits,
    faults: FaultList,
    reached: Reached = lambda _: None,
) -> list[Member]:
    """Stream every plain file of an archive into ``folder`` and return what was kept.

    Args:
        path: the archive.
        kind: "zip", "tar" or "gzip" (a tar.gz, or one packed data file).
        folder: where the files go, under numbers.
        limits: bounds on members and bytes.
        faults: what is refused is noted here.
        reached: told how many bytes of the archive are read.
    """
    opened = {"zip": zip_members, "tar": tar_members, "gzip": gzip_members}.get(kind)
    if opened is None:
        faults.add(None, "file", f"{kind} archives are not read; pack the data as zip or tar.gz")
        return []
    sink = _Sink(folder, limits, faults, packed_bytes=path.stat().st_size)
    try:
        with sink.pictures:
            for name, stream in opened(path, limits, faults, reached):
                try:
                    sink.keep(name, stream)
                except DAMAGE:
                    faults.add(None, "file", "the member is damaged or cut off", file=name)
                    if kind != "zip":
                        break
    except Refused as refusal:
        faults.add(None, "file", str(refusal))
    except DAMAGE:
        faults.add(None, "file", f"the {kind} archive is damaged or cut off; pack and send it again")
    return sink.members


def folder_members(root: Path, limits: Limits, faults: FaultList) -> list[Member]:
    """Return every plain file below a folder where it lies; links, bad names and archives are faults."""
    found = list(islice(_files_below(root), limits.max_members + 1))
    if len(found) > limits.max_members:
        found.pop()
        faults.add(None, "file", f"the folder has more than {limits.max_members} files")
    members: list[Member] = []
    for path in sorted(found):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            faults.add(None, "file", "a link is not followed; put the file itself there", file=name)
        elif (member := _file_member(name, path, faults)) is not None:
            members.append(member)
    return members


def _files_below(root: Path) -> Iterator[Path]:
    """Yield what counts as a member: plain files and links, but neither folders nor system files."""
    for path in root.rglob("*"):
        is_member = path.is_symlink() or path.is_file()
        if is_member and not _is_system_file(path.relative_to(root).as_posix()):
            yield path


def _file_member(name: str, path: Path, faults: FaultList) -> Member | None:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        faults.add(None, "file", f"cannot be read: {error.strerror}", file=name)
        return None
    reason, field = name_fault(name), "name"
    if reason is None and (nested := archive_kind(head)):
        reason, field = f"a {nested} archive inside the folder is not read; unpack it", "file"
    if reason is not None:
        faults.add(None, field, reason, file=name)
        return None
    return Member(clean_name(name), Stretch(path, 0, path.stat().st_size), head)


class _Sink:
    """Write members under numbers and watch every limit on the way."""

    def __init__(self, folder: Path, limits: Limits, faults: FaultList, packed_bytes: int) -> None:
        self.folder = folder
        self.limits = limits
        self.faults = faults
        self.members: list[Member] = []
        self.pictures = (folder / "members").open("wb")
        self._names: set[str] = set()
        self._total = 0
        self._allowed = min(
            limits.max_total_bytes,
            max(limits.free_expansion_bytes, int(packed_bytes * limits.max_expansion)),
        )

    def keep(self, name: str, stream: Readable) -> None:
        """Copy one member; a bad name or a nested archive is a fault and is not kept."""
        if _is_system_file(name):
            return
        reason = name_fault(name)
        if reason:
            self.faults.add(None, "name", reason, file=name)
            return
        name = clean_name(name)
        if name in self._names:
            self.faults.add(None, "name", "the archive holds this name twice", file=name)
            return
        self._names.add(name)
        head = _read_fully(stream, HEAD_BYTES)
        nested = archive_kind(head)
        if nested:
            reason = f"a {nested} archive inside the archive is not read; unpack it and pack its files"
            self.faults.add(None, "file", reason, file=name)
            return
        self.members.append(Member(name, self._copied(name, head, stream), head))

    def _copied(self, name: str, head: bytes, stream: Readable) -> Stretch:
        if picture_kind(head) and not name.lower().endswith(_DATA_SUFFIXES):
            offset = self.pictures.tell()
            size = self._copy(head, stream, self.pictures, self.limits.max_image_bytes)
            return Stretch(Path(self.pictures.name), offset, size)
        path = self.folder / f"m{len(self.members):07d}"
        with path.open("wb") as out:
            return Stretch(path, 0, self._copy(head, stream, out, self._allowed))

    def _copy(self, head: bytes, stream: Readable, out: IO[bytes], enough: int) -> int:
        """Copy a member; of one with more than ``enough`` bytes the rest is of no use."""
        size = 0
        block = head
        while block:
            size += len(block)
            self._total += len(block)
            if self._total > self._allowed:
                raise Refused(
                    f"the archive unpacks to more than {self._allowed} bytes; "
                    f"at most {self.limits.max_total_bytes} bytes (STRATA_MAX_UPLOAD_BYTES raises that) "
                    f"and {self.limits.max_expansion:g} times its packed size are accepted"
                )
            out.write(block)
            if size > enough:
                break  # the reference to a picture reports its size
            block = stream.read(BLOCK_BYTES)
        return size


def _is_system_file(name: str) -> bool:
    """Say whether a file browser left this member behind."""
    last = name.rsplit("/", 1)[-1]
    return name.startswith("__MACOSX/") or last in (".DS_Store", "Thumbs.db", "desktop.ini")


def name_fault(name: str) -> str | None:
    """Say what is wrong with a path of an archive or of a data line, or None."""
    if "\x00" in name:
        return "the name holds a NUL character"
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "the name holds a line break or another control character"
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:2] == ":":
        return "the path is absolute; write it relative to the archive"
    if ".." in plain.split("/"):
        return 'the path leaves the archive with ".."'
    if not plain.strip("/ ."):
        return "the name is empty"
    if len(name) > 1024:
        return "the name is longer than 1024 characters"
    return None


def clean_name(name: str) -> str:
    """Return the one spelling of a relative path: forward slashes, no "./", composed characters."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return unicodedata.normalize("NFC", "/".join(parts))


def _read_fully(stream: Readable, size: int) -> bytes:
    head = b""
    while len(head) < size:
        block = stream.read(size - len(head))
        if not block:
            break
        head += block
    return head
