"""Keep uploaded LoRAs as immutable folders named by their content.

::

    <root>/lora-<sha256 over both files>/
        adapter_config.json
        adapter_model.safetensors

A folder is checked and synced elsewhere and renamed into place, so a crash leaves the whole of it or nothing.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from adapter_store.datasets.archive import unpack
from adapter_store.datasets.archive_members import archive_kind
from adapter_store.datasets.records import MIB, FaultList, Limits, Report
from adapter_store.durable import make_folder, sync_file, sync_folder
from adapter_store.errors import LoraError, NotFoundError, StoreError
from adapter_store.lora import CONFIG_FILE, PICKLE_ADVICE, TENSORS_FILE
from adapter_store.lora.reading import MAX_TENSORS_BYTES, Lineage, examine

_ID = re.compile(r"lora-[0-9a-f]{64}")
_FILES = (CONFIG_FILE, TENSORS_FILE)
_LIMITS = Limits(max_total_bytes=MAX_TENSORS_BYTES + 64 * MIB, max_members=1000)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MOST_SAID = 20


class LoraStore:
    """The LoRAs under one folder; safe to use from several processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, archive: Path, work: Path, *, lineage: Lineage | None, task: str | None = None) -> str:
        """Check an uploaded archive and keep its LoRA; the same content gives the same id.

        Args:
            archive: zip, tar or tar.gz of a LoRA folder; it is only read.
            work: an empty folder on the same disk as the store; what is left in it is the caller's to remove.
            lineage: what the LoRA must fit, as far as it is known.
            task: the task that it shall become.

        Raises:
            LoraError: with every fault.
        """
        faults = FaultList(_LIMITS.max_faults)
        folder = _unpacked(archive, work, faults)
        if folder is not None:
            examine(folder, faults, lineage, task)
        refuse(faults)
        assert folder is not None
        return self._keep(folder)

    def open(self, lora_id: str) -> Path:
        """Return the folder of a stored LoRA; its content must match its id.

        Raises:
            NotFoundError: there is no such LoRA.
            StoreError: its files were changed or damaged.
        """
        folder = self.root / lora_id
        if not _ID.fullmatch(lora_id) or not folder.is_dir():
            raise NotFoundError(f"there is no stored LoRA {lora_id[:80]!r}; import it again", param="adapter")
        if not _is_sound(folder):
            raise StoreError(f"the stored LoRA {lora_id} is damaged (digest differs); import it again")
        return folder

    def _keep(self, folder: Path) -> str:
        lora_id = _id_of(folder)
        target = self.root / lora_id
        make_folder(self.root)
        if target.is_dir() and _is_sound(target):
            return lora_id
        for name in _FILES:
            sync_file(folder / name)
        sync_folder(folder)
        shutil.rmtree(target, ignore_errors=True)
        try:
            folder.rename(target)
        except OSError:
            if not _is_sound(target):  # else another process stored the same content meanwhile
                raise
        sync_folder(self.root)
        return lora_id


def refuse(faults: FaultList) -> None:
    """Raise LoraError with every fault, if there is one."""
    if not len(faults):
        return
    said = "; ".join(str(fault) for fault in faults.faults[:_MOST_SAID])
    more = f"; and {len(faults) - _MOST_SAID} more" if len(faults) > _MOST_SAID else ""
    report = Report(format="lora", faults=tuple(faults.faults), truncated_faults=faults.truncated)
    raise LoraError(f"the LoRA cannot be imported: {said}{more}", report=report, param="adapter")


def _unpacked(archive: Path, work: Path, faults: FaultList) -> Path | None:
    """Return a folder below ``work`` with the two files that count, wherever in the archive they lie.

    None, with a fault noted, if the archive cannot be read.
    """
    with archive.open("rb") as stream:
        kind = archive_kind(stream.read(512))
    if kind is None:
        faults.add(None, "adapter", f"this is no archive; send a zip of {CONFIG_FILE} and {TENSORS_FILE}")
        return None
    scratch, folder = work / "members", work / "lora"
    scratch.mkdir(parents=True)
    folder.mkdir()
    said = FaultList(_LIMITS.max_faults)
    members = unpack(archive, kind, scratch, _LIMITS, said)
    for fault in said.faults:
        pickled = fault.file is not None and fault.file.endswith(_PICKLES)
        faults.add(None, fault.field, PICKLE_ADVICE if pickled else fault.reason, fault.file)
    if any(fault.file is None for fault in said.faults):
        return None  # the archive itself is broken: what is missing in it tells nothing
    for member in members:
        name = member.name.rsplit("/", 1)[-1]
        if name.endswith(_PICKLES):
            faults.add(None, "file", PICKLE_ADVICE, member.name)
        elif name in _FILES and (folder / name).exists():
            faults.add(
                None, "file", "the archive holds two files of this name; pack one adapter", member.name
            )
        elif name in _FILES:
            member.path.rename(folder / name)
    return folder


def _id_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _FILES:
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"lora-{digest.hexdigest()}"


def _is_sound(folder: Path) -> bool:
    try:
        return _id_of(folder) == folder.name
    except FileNotFoundError:
        return False
