"""The store of one lineage's versions."""

from __future__ import annotations

from pathlib import Path

from adapter_store.versions.aliases import AliasTable
from adapter_store.versions.manifest import Manifest, ManifestDraft


class VersionStore:
    """Publish, list and fetch immutable versions."""

    aliases: AliasTable

    def __init__(self, url: str | Path, lineage: str, cache_dir: Path | None = None) -> None: ...

    def list(self) -> list[Manifest]:
        """Return all complete versions, oldest first."""
        raise NotImplementedError

    def manifest(self, version: str) -> Manifest:
        """Return one manifest; raise NotFoundError, VersionCorrupt, InputError."""
        raise NotImplementedError

    def exists(self, version: str) -> bool:
        raise NotImplementedError

    def of_job(self, job_id: str) -> Manifest | None:
        """Return what the job has published already, or None."""
        raise NotImplementedError

    def fetch(self, version: str) -> Path:
        """Return a local folder with every file verified against its sha256."""
        raise NotImplementedError

    def publish(self, folder: Path, draft: ManifestDraft, *, fence: int) -> Manifest:
        raise NotImplementedError

    def fence(self) -> int:
        """Return the highest fencing token recorded, 0 if none."""
        raise NotImplementedError

    def raise_fence(self, fence: int) -> None:
        """Record a fencing token; raise FencedOut if a higher one is recorded."""
        raise NotImplementedError
