"""Write small files so that a power cut or a kill leaves the old content or the new, never a mix."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path
from typing import BinaryIO

HIDDEN_PREFIX = ".part-"
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV})


def sync_file(path: Path) -> None:
    """Make a file's content durable that was written without it."""
    with path.open("rb") as reader:
        os.fsync(reader.fileno())


def sync_folder(folder: Path) -> None:
    """Make the folder's own entries durable (a new name is lost in a power cut without it)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data`` atomically: other readers see the old bytes or the new ones."""
    part = _write_part(path.parent, data)
    try:
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_durably(path: Path, data: bytes) -> None:
    """Create ``path`` with all of ``data``, or raise FileExistsError; exactly one of many callers succeeds.

    The content is complete before the name appears (hard link of a synced file). On
    file systems without hard links the name is made by O_EXCL and filled afterwards,
    which is as exclusive, but a kill in between leaves a file that is cut short.
    """
    part = _write_part(path.parent, data)
    try:
        os.link(part, path)
    except FileNotFoundError:
        # Somebody cleared the folder and took the part along; by now the name may be taken.
        create_durably(path, data)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _create_in_place(path, data)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file under its final name only when all of it is on disk."""
    part = target.parent / f"{HIDDEN_PREFIX}{uuid.uuid4().hex}"
    try:
        with source.open("rb") as reader, part.open("xb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            _sync(writer)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, and make their names durable."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _write_part(folder: Path, data: bytes) -> Path:
    part = folder / f"{HIDDEN_PREFIX}{uuid.uuid4().hex}"
    try:
        with part.open("xb") as writer:
            writer.write(data)
            _sync(writer)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return part


def _create_in_place(path: Path, data: bytes) -> None:
    with path.open("xb") as writer:
        try:
            writer.write(data)
            _sync(writer)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _sync(writer: BinaryIO) -> None:
    writer.flush()
    os.fsync(writer.fileno())
