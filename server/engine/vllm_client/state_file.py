"""Hand a version's increments to the workers: files in a private folder, each known by its hash.

The folder lies in memory if there is room. It belongs to one engine, is readable by this user only, and stays
locked while the gateway lives: what a killed one left behind is told by its lock, not by a process id, which
another container counts anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from safetensors.torch import save

if TYPE_CHECKING:
    from adapter_store.state import AdapterState

_MEMORY = Path("/dev/shm")  # noqa: S108  folders made there are this user's alone
_PREFIX = "strata-banks-"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class StateFile:
    """Tell where increments lie, the sha256 of the file and their total rank."""

    path: Path
    digest: str
    rank: int


class StateFolder:
    """Keep the files that are on their way to workers; made when first used, gone with ``close``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: dict[Path, tuple[Path, IO[bytes]]] = {}

    def write(self, state: AdapterState, dtype: torch.dtype) -> StateFile:
        """Write ``down.<target>`` and ``up.<target>`` of ``state``, in ``dtype``.

        Raises:
            OSError: there is no room.
        """
        tensors = {f"down.{name}": tensor.to(dtype).contiguous() for name, tensor in state.down.items()}
        tensors |= {f"up.{name}": tensor.to(dtype).contiguous() for name, tensor in state.up.items()}
        data = save(tensors)
        path = self._folder(len(data)) / f"{uuid.uuid4().hex}.safetensors"
        try:
            path.write_bytes(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return StateFile(path, hashlib.sha256(data).hexdigest(), state.total_rank)

    def close(self) -> None:
        """Remove the folders."""
        with self._lock:
            for folder, lock in self._folders.values():
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()
            self._folders.clear()

    def _folder(self, size_bytes: int) -> Path:
        """Return a folder with room for a file of that size: containers often give little memory."""
        roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2 * size_bytes
        parent = _MEMORY if roomy else Path(tempfile.gettempdir())
        with self._lock:
            known = self._folders.get(parent)
            if known is None or not known[0].is_dir():
                if known is not None:
                    known[1].close()
                _sweep(parent)
                folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
                lock = (folder / _LOCK).open("wb")
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._folders[parent] = folder, lock
            return self._folders[parent][0]


def _sweep(parent: Path) -> None:
    """Remove this user's folders that no living program holds."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # held by another engine, being made at this moment, or gone
            continue
