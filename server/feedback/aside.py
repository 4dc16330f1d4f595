"""Put files of corrections aside, so that nothing that a later look could read is lost."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from adapter_store.durable import make_folder, sync_folder
from server.feedback.files import json_files
from server.logs import log

ASIDE = "refused-"
_UNREADABLE = f"{ASIDE}unreadable"
_SHA256 = re.compile(rb"\b[0-9a-f]{64}\b")


def save(path: Path, content: bytes | None) -> None:
    """Move a correction's file where no delivery removes it, after the picture that it names.

    Args:
        path: the file, in a folder of a task.
        content: what it holds; None: it cannot be read, so any picture beside it may be its own.
    """
    aside = path.parent.parent / _UNREADABLE
    make_folder(aside)
    if content is None:
        pictures = sorted(path.parent.glob("*.picture"))
    else:
        pictures = [
            path.parent / f"{name.decode()}.picture" for name in sorted(set(_SHA256.findall(content)))
        ]
    for picture in pictures:
        _keep_beside(picture, aside / picture.name)
    os.replace(path, _unused(aside / path.name))
    sync_folder(aside)


def save_others(folder: Path, learned: Collection[str]) -> int:
    """Save every correction of a batch that its job does not learn; return how many.

    Raises:
        OSError: the batch cannot be listed now, so what else lies in it is not known.
    """
    others = [path for path in json_files(folder) if path.stem not in learned]
    for path in others:
        log("a correction cannot be read and is set aside", logging.ERROR, file=path.name, batch=folder.name)
        save(path, None)
    return len(others)


def _unused(target: Path) -> Path:
    """Return a name that nothing has: a question may be answered again, and damaged again."""
    names = (target.with_stem(f"{target.stem}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([target], names) if not os.path.lexists(name))


def _keep_beside(picture: Path, target: Path) -> None:
    """Keep a picture also under ``target``; others may need it where it is, unless nobody can read it."""
    try:
        os.link(picture, target)
    except (FileExistsError, FileNotFoundError):
        return
    except OSError:  # no hard links here, or it is no file
        try:
            shutil.copy2(picture, target)
        except OSError:
            with suppress(OSError):
                target.unlink(missing_ok=True)
            os.replace(picture, target)
