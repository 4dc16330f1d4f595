"""Hand a version's increments to the workers: one file in memory or a temporary folder, known by its hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

if TYPE_CHECKING:
    from adapter_store.state import AdapterState

_MEMORY = Path("/dev/shm")  # noqa: S108  the name below is not to be guessed
_ROOM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class StateFile:
    """Tell the sha256 of a file of increments and their total rank."""

    digest: str
    rank: int


def new_state_path() -> Path:
    """Return a path that nothing lies at: in memory if there is room (containers often give little)."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    folder = _MEMORY if roomy else Path(tempfile.gettempdir())
    return folder / f"strata-bank-{os.getpid()}-{uuid.uuid4().hex}.safetensors"


def write_state_file(path: Path, state: AdapterState, dtype: torch.dtype) -> StateFile:
    """Write ``down.<target>`` and ``up.<target>`` of ``state``, in ``dtype``, readable by this user only."""
    tensors = {f"down.{name}": tensor.to(dtype).contiguous() for name, tensor in state.down.items()}
    tensors |= {f"up.{name}": tensor.to(dtype).contiguous() for name, tensor in state.up.items()}
    data = save(tensors)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    return StateFile(hashlib.sha256(data).hexdigest(), state.total_rank)


def sweep_state_files() -> None:
    """Remove what gateways that were killed left behind."""
    for folder in {_MEMORY, Path(tempfile.gettempdir())}:
        for path in folder.glob("strata-bank-*"):
            pid = path.name.split("-")[2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)
