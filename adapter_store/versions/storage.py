"""Files by name, in a folder or at any fsspec URL; knows nothing about versions.

Names are relative, with ``/`` between parts; ``..``, absolute names and hidden parts
are refused. What each kind promises:

=================  ==============================================  ==================================
                   plain folder, ``file://``                       any other fsspec URL
=================  ==============================================  ==================================
put                atomic and synced (temporary file, rename)      as atomic as one upload of the
                                                                   service (S3, GCS, Azure: wholly)
create_exclusive   exclusive and complete under one name           exclusive where fsspec passes
                   (hard link), also between machines that share   ``mode="create"`` on to the service
                   the folder                                      (S3: If-None-Match); ``memory://``
                                                                   between threads of one process;
                                                                   elsewhere check-then-write
=================  ==============================================  ==================================
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from adapter_store.durable import copy_durably, create_durably, make_folder
from adapter_store.errors import InputError, NotFoundError, StoreError


class Storage(Protocol):
    """Read and write bytes by name."""

    def read(self, name: str) -> bytes:
        """Return the content; raise NotFoundError."""
        ...

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """Create; return False, and change nothing, if the name is taken."""
        ...

    def put(self, source: Path, name: str) -> None:
        """Store a local file."""
        ...

    def fetch(self, name: str, target: Path) -> None:
        """Write the content to a local file; raise NotFoundError."""
        ...

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """Return the sorted names of the files and folders right below a folder; empty if it is not there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if it is not there."""
        ...

    def clear(self, prefix: str, keep: tuple[str, ...]) -> None:
        """Remove all below a folder, half-written files too, but the files named in ``keep``."""
        ...

    def local_path(self, name: str) -> Path | None:
        """Return where the name lies on this machine's disk, or None if it does not."""
        ...

    def stamps(self, folder: str) -> dict[str, str]:
        """Return by name what is another text once a file right below a folder was written again."""
        ...


def open_storage(url: str | Path) -> Storage:
    """Return the storage at a folder, a ``file://`` URL or any URL that fsspec knows.

    Raises:
        InputError: The URL's kind is unknown or its package is not installed.
    """
    text = str(url)
    if isinstance(url, Path) or "://" not in text:
        return FolderStorage(Path(text).expanduser().absolute())
    if text.startswith("file://"):
        return FolderStorage(Path(unquote(urlsplit(text).path)))
    return UrlStorage(text)


def check_file_name(name: str) -> str:
    """Return a relative file name that stays below its folder; raise InputError otherwise."""
    parts = name.split("/")
    if (
        "\\" in name
        or not name.isprintable()
        or len(name) > 400
        or any(p.startswith(".") or not p for p in parts)
    ):
        raise InputError(
            f"file name {name[:80]!r} is not allowed: use plain relative names without .. or hidden parts",
            param="files",
        )
    return name


class FolderStorage:
    """Keep files in a folder of this machine's file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        """Return the content; raise NotFoundError."""
        with _folder_faults(name):
            return self._path(name).read_bytes()

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """Create, complete and synced; return False if the name is taken."""
        with _folder_faults(name):
            make_folder(self._path(name).parent)
            try:
                create_durably(self._path(name), data)
            except FileExistsError:
                return False
        return True

    def put(self, source: Path, name: str) -> None:
        """Copy a file in; it becomes read-only, as what is stored does not change."""
        with _folder_faults(name):
            make_folder(self._path(name).parent)
            copy_durably(source, self._path(name))
            self._path(name).chmod(0o444)

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file out; raise NotFoundError."""
        with _folder_faults(name):
            shutil.copyfile(self._path(name), target)

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """Return the names right below a folder; half-written files are left out."""
        folder = self._path(prefix) if prefix else self.root
        try:
            names = [path.name for path in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted(name for name in names if not name.startswith(".")))

    def remove(self, name: str) -> None:
        """Remove a file."""
        with _folder_faults(name):
            self._path(name).unlink(missing_ok=True)

    def clear(self, prefix: str, keep: tuple[str, ...]) -> None:
        """Remove all below a folder, half-written files too, but the files named in ``keep``."""
        with _folder_faults(prefix):
            for path in self._path(prefix).iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name not in keep:
                    path.unlink(missing_ok=True)

    def local_path(self, name: str) -> Path | None:
        """Return the path of a name."""
        return self._path(name)

    def stamps(self, folder: str) -> dict[str, str]:
        """Return inode, size and time of change, which a restored time of modification does not hide."""
        try:
            with _folder_faults(folder), os.scandir(self._path(folder)) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except NotFoundError:
            return {}
        return {name: f"{stat.st_ino} {stat.st_size} {stat.st_ctime_ns}" for name, stat in found}

    def _path(self, name: str) -> Path:
        return self.root / PurePosixPath(check_file_name(name))


class UrlStorage:
    """Keep files at an fsspec URL (``s3://bucket/prefix``, ``memory://name``, ...)."""

    _creating = threading.Lock()

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"the store URL {_shown(url)} cannot be used: {error}", param="store_url"
            ) from None
        self._url = _shown(url)

    def read(self, name: str) -> bytes:
        """Return the content; raise NotFoundError."""
        with self._faults(name):
            return self._fs.cat_file(self._path(name))

    def create_exclusive(self, name: str, data: bytes) -> bool:
        """Create if absent, as exclusive as the service offers; return False if the name is taken."""
        with self._faults(name), self._creating:
            self._make_parent(name)
            if self._exists(name):
                return False
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def put(self, source: Path, name: str) -> None:
        """Upload a local file."""
        with self._faults(name):
            self._make_parent(name)
            self._fs.put_file(str(source), self._path(name))

    def fetch(self, name: str, target: Path) -> None:
        """Download to a local file; raise NotFoundError."""
        with self._faults(name):
            self._fs.get_file(self._path(name), str(target))

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """Return the names right below a folder, asking the service and not a cache."""
        return tuple(sorted(name for name in self._listed(prefix) if not name.startswith(".")))

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._remove(name, recursive=False)

    def clear(self, prefix: str, keep: tuple[str, ...]) -> None:
        """Remove all below a folder but the files named in ``keep``."""
        for name in self.list(prefix):
            if name not in keep:
                self._remove(f"{prefix}/{name}", recursive=True)

    def local_path(self, name: str) -> Path | None:
        """Return None: nothing lies on this machine."""
        check_file_name(name)

    def stamps(self, folder: str) -> dict[str, str]:
        """Return all that a listing tells of files: size, times, and a tag where the service has one."""
        return {
            name: str(sorted((key, str(value)) for key, value in found.items()))
            for name, found in self._listed(folder).items()
        }

    def _listed(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Return by name what one listing tells of what is right below a folder."""
        folder = self._path(prefix) if prefix else self._root
        with self._faults(prefix):
            self._fs.invalidate_cache(folder)
            try:
                found: list[dict[str, Any]] = self._fs.ls(folder, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        paths = {str(one["name"]).rstrip("/"): one for one in found}
        names = {path.rpartition("/")[2]: one for path, one in paths.items() if path != folder}
        return {name: one for name, one in names.items() if name}

    def _remove(self, name: str, *, recursive: bool) -> None:
        with self._faults(name):
            try:
                self._fs.rm(self._path(name), recursive=recursive)
            except FileNotFoundError:
                return

    def _exists(self, name: str) -> bool:
        self._fs.invalidate_cache(self._path(name))
        return bool(self._fs.isfile(self._path(name)))

    def _make_parent(self, name: str) -> None:
        self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{check_file_name(name)}"

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise NotFoundError(f"the store has no file {name!r}") from None
        except OSError as error:
            raise StoreError(f"the store at {self._url} failed on {name!r}: {error}; try again") from error


@contextmanager
def _folder_faults(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotFoundError(f"the store has no file {name!r}") from None
    except OSError as error:
        raise StoreError(
            f"the store could not use {name!r}: {error.strerror}; check space and permissions"
        ) from error


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
