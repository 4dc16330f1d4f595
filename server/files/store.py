"""Keep uploaded files: content first, its record last, so that a record means a complete file."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from adapter_store.durable import make_folder, sync_file, write_durably
from adapter_store.errors import InputError, NotFoundError

_ID = re.compile(r"file-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The record of one uploaded file; ``created_at`` in seconds since 1970."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int


class FileStore:
    """Keep files below one folder, one folder each."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, path: Path, filename: str, purpose: str) -> StoredFile:
        """Move the file at ``path`` in (same disk) and make it durable."""
        number = f"{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex[:20]}"
        record = StoredFile(f"file-{number}", filename, purpose, path.stat().st_size, int(time.time()))
        folder = self._root / record.id
        make_folder(folder)
        try:
            shutil.move(path, folder / "content")
            sync_file(folder / "content")
            write_durably(folder / "record.json", json.dumps(asdict(record)).encode())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return record

    def get(self, file_id: str) -> StoredFile:
        """Return a file's record; raise NotFoundError."""
        if not _ID.fullmatch(file_id):
            raise no_file(file_id)
        try:
            return StoredFile(**json.loads((self._root / file_id / "record.json").read_text()))
        except FileNotFoundError:
            raise no_file(file_id) from None

    def content(self, file_id: str) -> Path:
        """Return the path of a file's content; raise NotFoundError."""
        return self._root / self.get(file_id).id / "content"

    def open(self, file_id: str) -> BinaryIO:
        """Open a file's content, which stays readable if it is deleted meanwhile; raise NotFoundError."""
        try:
            return self.content(file_id).open("rb")
        except FileNotFoundError:
            raise no_file(file_id) from None

    def list(self, after: str | None = None, *, newest_first: bool = True) -> list[StoredFile]:
        """Return the files behind ``after``, which may be deleted meanwhile; ids sort by time.

        Raises:
            NotFoundError: ``after`` is no id of a file.
        """
        if after is not None and not _ID.fullmatch(after):
            raise no_file(after)
        ids = sorted(self._ids(), reverse=newest_first)
        if after is not None:
            ids = [name for name in ids if (name < after if newest_first else name > after)]
        found: list[StoredFile] = []
        for name in ids:
            with suppress(NotFoundError):  # deleted meanwhile
                found.append(self.get(name))
        return found

    def delete(self, file_id: str) -> None:
        """Remove a file; raise NotFoundError. Data sets made from it stay."""
        record = self.get(file_id)
        (self._root / record.id / "record.json").unlink(missing_ok=True)
        shutil.rmtree(self._root / record.id, ignore_errors=True)

    def sweep(self, older_than_seconds: float = 24 * 3600) -> None:
        """Remove what has no record: its upload or its removal was killed."""
        for folder in [self._root / name for name in self._ids()]:
            is_whole = (folder / "record.json").is_file()
            if not is_whole and time.time() - folder.stat().st_mtime > older_than_seconds:
                shutil.rmtree(folder, ignore_errors=True)

    def _ids(self) -> Iterable[str]:
        if not self._root.is_dir():
            return ()
        return [entry.name for entry in os.scandir(self._root) if _ID.fullmatch(entry.name)]


def check_purpose(purpose: str) -> str:
    """Return ``purpose`` if files may be kept for it; raise InputError otherwise."""
    if purpose != "fine-tune":
        raise InputError(f"purpose {purpose[:40]!r} is not supported: use 'fine-tune'", param="purpose")
    return purpose


def no_file(file_id: str) -> NotFoundError:
    """Return the error that names a file that is not there."""
    return NotFoundError(f"there is no file {file_id[:80]!r}; GET /v1/files lists them", param="file")
