"""Take the names of vLLM's shared memory away once every worker has opened it."""

from __future__ import annotations

import os
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where the kernel keeps it
_IDENTITY_VARIABLE = "VLLM_DIST_IDENT"


def take_names_away(folder: Path = SHARED_MEMORY) -> None:
    """Unlink this engine's segments in ``folder``; who has opened one keeps it, and the kernel frees it then.

    vLLM's CPU build makes one for each rank that shares a model and never removes it: call this once all
    ranks have joined. Then none is left behind, however the processes end.
    """
    identity = os.environ.get(_IDENTITY_VARIABLE, "")
    if not identity.startswith("vllm_dist_"):
        return
    for path in folder.glob(f"{identity}-*"):
        path.unlink(missing_ok=True)
