"""Run a worker process that is killed with SIGKILL at a named point (a function of the real code).

The points are ``phase:<name>`` (when that phase begins) and ``before:<step>`` or ``after:<step>`` around the
steps that change something outside the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

STEPS = ("split", "publish", "stable", "previous", "finish")


def work_until_killed(point: str, flags: list[str]) -> None:
    """Become a worker that dies at ``point``."""
    import torch

    torch.set_num_threads(1)
    kind, _, name = point.partition(":")
    if kind == "phase":
        _die_in_phase(name)
    else:
        _die_around(name, before=kind == "before")
    from trainer_worker.__main__ import main

    raise SystemExit(main(flags))


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_phase(name: str) -> None:
    from trainer_worker.progress import Progress

    original = Progress.phase

    def phase(self: Progress, wanted: str) -> Any:
        if wanted == name:
            _die()
        return original(self, wanted)

    Progress.phase = phase  # type: ignore[method-assign]


def _die_around(step: str, *, before: bool) -> None:
    from adapter_store.jobs.claim import Claim
    from adapter_store.versions import AliasTable, VersionStore
    from trainer_worker.heldout import HeldOut

    owner, method, applies = {
        "split": (HeldOut, "split", lambda *_: True),
        "publish": (VersionStore, "publish", lambda *_: True),
        "stable": (AliasTable, "move", lambda alias, *_: alias == "stable"),
        "previous": (AliasTable, "remember_previous", lambda *_: True),
        "finish": (Claim, "finish", lambda *_: True),
    }[step]
    original: Callable[..., Any] = getattr(owner, method)

    def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
        matches = applies(*args)
        if matches and before:
            _die()
        result = original(self, *args, **kwargs)
        if matches:
            _die()
        return result

    setattr(owner, method, replaced)
