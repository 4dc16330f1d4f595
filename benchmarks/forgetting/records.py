"""Where runs are kept, who works on which, and that all runs of a folder were asked the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from adapter_store.durable import write_durably
from adapter_store.errors import InputError
from benchmarks.forgetting.methods import METHODS
from benchmarks.forgetting.running import Measured
from benchmarks.forgetting.streams import StreamTask

Record = dict[str, Any]
_NEEDED: Final = {field.name for field in fields(Measured)} | {"measures", "setup", "data", "beside"}


@dataclass(frozen=True, slots=True)
class Setup:
    """What all runs of a folder must share: base, examples and test questions of a task, passes over them.

    ``train`` and ``test`` are 0 where a user's own data sets are taken as they are, from ``source``.
    """

    base: str
    train: int
    test: int
    epochs: float
    source: str = "packages"

    def check(self, records: Sequence[Record]) -> None:
        """Raise InputError, with every difference, if some records were made with another setup."""
        mine = asdict(self)
        for record in records:
            differing = [
                f"{name} {record['setup'].get(name)}, not {value}"
                for name, value in mine.items()
                if record["setup"].get(name) != value
            ]
            if differing:
                raise InputError(
                    f"{_name(record)} was made with {'; '.join(differing)}: "
                    "give the same options, or another --out",
                    param="out",
                )


def read_records(folder: Path) -> list[Record]:
    """Return all complete runs under a folder, in the methods' order, then by seed.

    Raises:
        InputError: a run is not one of this build.
    """
    records = [_read(path) for path in sorted(folder.glob("runs/*.json"))]
    order = list(METHODS)
    return sorted(records, key=lambda record: (order.index(record["method"]), record["seed"]))


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): move it away, and its run is repeated") from None
    if not isinstance(record, dict) or not record.keys() >= _NEEDED or str(record["method"]) not in METHODS:
        raise InputError(f"{path} was written by another build: move it away, or give another --out")
    return record


def check_comparable(folder: Path, seed: int, data: str, base_digest: str) -> None:
    """Raise InputError if a run that is there had another base, or with the same seed other data."""
    for other in read_records(folder):
        same_data = other["data"] == data or other["seed"] != seed
        if other["base_digest"] != base_digest or not same_data:
            what = "other pictures" if not same_data else "another base"
            raise InputError(f"{_name(other)} was made with {what}: move it away, or give another --out")


def add_record(folder: Path, record: Record) -> None:
    """Write a run, unless it cannot stand beside those that are there; raises as ``check_comparable``."""
    check_comparable(folder, record["seed"], record["data"], record["base_digest"])
    path = path_of(folder, record["method"], record["seed"])
    write_durably(path, (json.dumps(record, indent=1) + "\n").encode())


def path_of(folder: Path, method: str, seed: int) -> Path:
    """Return where a run's record is."""
    return folder / "runs" / f"{method}-{seed}.json"


def data_digest(tasks: Sequence[StreamTask]) -> str:
    """Return the identity of a stream's stages and data sets."""
    stages = [(task.name, task.teaches, task.train.ref.id, task.test.ref.id) for task in tasks]
    return hashlib.sha256(json.dumps(stages).encode()).hexdigest()


@contextmanager
def claimed(record: Path) -> Iterator[bool]:
    """Tell whether a run is still to be done and nobody else is at it; it is ours inside the block."""
    lock = FileLock(record.with_suffix(".lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield not record.exists()
    finally:
        record.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


def others_under_way(folder: Path, own: Path) -> int:
    """Count the runs that other programs are at, of all streams beside this folder."""
    locks = set(folder.parent.glob("*/runs/*.lock")) - {own.with_suffix(".lock")}
    return sum(_held(lock) for lock in locks)


def _held(path: Path) -> bool:
    """Return whether a program holds a lock; one that was killed left only the file."""
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def _name(record: Record) -> str:
    return f"the run of {record['method']} with seed {record['seed']}"
