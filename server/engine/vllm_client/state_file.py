"""Hand a version's increments to the workers: one file in memory or a temporary folder, known by its hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

if TYPE_CHECKING:
    from adapter_store.state import AdapterState

_MEMORY = Path("/dev/shm")  # noqa: S108  mkstemp chooses the name


@dataclass(frozen=True, slots=True)
class StateFile:
    """Name a file of increments, its sha256 and their total rank; the writer removes it."""

    path: Path
    digest: str
    rank: int


def write_state_file(state: AdapterState, dtype: torch.dtype) -> StateFile:
    """Write ``down.<target>`` and ``up.<target>`` as ``state`` holds them, in ``dtype``."""
    tensors = {f"down.{name}": tensor.to(dtype).contiguous() for name, tensor in state.down.items()}
    tensors |= {f"up.{name}": tensor.to(dtype).contiguous() for name, tensor in state.up.items()}
    data = save(tensors)
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2 * len(data)  # containers give little
    folder = _MEMORY if roomy else None
    handle, name = tempfile.mkstemp(prefix="strata-bank-", suffix=".safetensors", dir=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    return StateFile(Path(name), hashlib.sha256(data).hexdigest(), state.total_rank)
