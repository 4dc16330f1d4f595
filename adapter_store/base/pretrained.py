"""Load models with transformers, one at a time in a process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

_ALONE = threading.Lock()


def load_pretrained(kind: Any, folder: Path | str, **options: Any) -> Any:
    """Return ``kind.from_pretrained(folder, **options)``, while no other thread loads through here.

    While it loads, transformers replaces functions of its classes and of torch; afterwards it puts back
    what it found there. Two threads that do so at once leave a replacement in place for ever: in every
    later model of the process weights that should be tied are empty.
    """
    with _ALONE:
        return kind.from_pretrained(folder, **options)
