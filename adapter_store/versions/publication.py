"""Publish a version so that all of it appears, once, or nothing does.

One version is one directory::

    <lineage>/v7/reservation.json   first: who publishes here; exclusive create gives the number
    <lineage>/v7/...                then: the files
    <lineage>/v7/manifest.json      last: exclusive create; from here on the version exists
    <lineage>/fences/<token>        every fencing token seen

Why this is safe with any number of publishers killed at any point:

- Numbers are reserved without gaps (highest + 1), so when v7 is reserved, all below it are.
- Before v7 gets its manifest, every lower number is *settled*: it has a manifest, or its
  publisher is dead or fenced out and the number is given up by writing an ``abandoned``
  record under the manifest's name. Both use exclusive create: one of the two wins for good.
- So a job that was published under a lower number is seen before v7 could repeat it.

A number that was given up stays unused; its files are removed.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from adapter_store.errors import FencedOut, NotFoundError, StoreError, StrataError
from adapter_store.versions.manifest import Manifest, ManifestDraft
from adapter_store.versions.storage import Storage

MANIFEST = "manifest.json"
RESERVATION = "reservation.json"
ABANDONED = b'{"abandoned": true}'
_ATTEMPTS = 1000
# A folder appears a moment before the reservation in it.
_NAMELESS_SECONDS = 0.5
_NUMBERED = re.compile(r"v[1-9][0-9]{0,8}")


class Reservation(BaseModel):
    """Record who publishes under a number."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    fence: int
    nonce: str
    reserved_at: float


def is_abandoned(manifest: bytes) -> bool:
    """Tell whether what lies under the manifest's name gives the number up."""
    try:
        data = json.loads(manifest)
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("abandoned") is True


class Fences:
    """Remember the highest fencing token of a lineage."""

    def __init__(self, storage: Storage, root: str) -> None:
        self._storage = storage
        self._root = f"{root}/fences"

    def highest(self) -> int:
        """Return the highest token recorded, 0 if none is."""
        return max((int(name) for name in self._storage.list(self._root) if name.isdigit()), default=0)

    def raise_to(self, fence: int) -> None:
        """Record a token; raise FencedOut if a higher one is there."""
        if fence < 1:
            raise FencedOut(f"fencing token {fence} is not valid: use the fence of the claim")
        self.check(fence)
        name = f"{fence:020d}"
        if name not in self._storage.list(self._root):
            self._storage.create_exclusive(f"{self._root}/{name}", b"")
            for old in self._storage.list(self._root):
                if old.isdigit() and int(old) < fence:
                    self._storage.remove(f"{self._root}/{old}")
        self.check(fence)

    def check(self, fence: int) -> None:
        """Raise FencedOut if a higher token is recorded."""
        if (highest := self.highest()) > fence:
            raise FencedOut(
                f"a newer worker (token {highest}) owns this lineage; token {fence} may not publish any more:"
                " stop working on the job"
            )


class Publication:
    """Publish versions of one lineage."""

    def __init__(self, storage: Storage, lineage: str, fences: Fences, *, settle_seconds: float = 10) -> None:
        self._storage = storage
        self._lineage = lineage
        self._fences = fences
        self._settle_seconds = settle_seconds
        self._decided: dict[int, bytes] = {}

    def publish(
        self, sources: dict[str, Path], hashes: dict[str, str], draft: ManifestDraft, fence: int
    ) -> Manifest:
        """Return the manifest under which the job is published; see ``VersionStore.publish``."""
        for _ in range(_ATTEMPTS):
            self._fences.check(fence)
            number = self._reserve(draft.job_id, fence)
            if number is None:
                continue
            done = False
            try:
                manifest = self._fill(number, sources, hashes, draft, fence)
                done = manifest is not None
            finally:
                if not done:
                    self._give_up(number)
            if manifest is not None:
                if manifest.version != f"v{number}":
                    self._give_up(number)
                return manifest
        raise StoreError("the version could not be published: its number was always taken; try again")

    def numbers(self) -> list[int]:
        """Return every number that was ever reserved, ascending."""
        names = self._storage.list(self._lineage)
        return sorted(int(name[1:]) for name in names if _NUMBERED.fullmatch(name))

    def decided(self, number: int) -> bytes | None:
        """Return what lies under the manifest's name, None while the number is not settled."""
        if number not in self._decided:
            try:
                self._decided[number] = self._storage.read(self._name(number, MANIFEST))
            except NotFoundError:
                return None
        return self._decided[number]

    def forget(self, number: int) -> None:
        """Read a manifest anew when it is asked for next: it was restored, or may be."""
        self._decided.pop(number, None)

    def _reserve(self, job_id: str, fence: int) -> int | None:
        number = max(self.numbers(), default=0) + 1
        mine = Reservation(job_id=job_id, fence=fence, nonce=uuid.uuid4().hex, reserved_at=time.time())
        name = self._name(number, RESERVATION)
        return number if self._storage.create_exclusive(name, mine.model_dump_json().encode()) else None

    def _fill(
        self, number: int, sources: dict[str, Path], hashes: dict[str, str], draft: ManifestDraft, fence: int
    ) -> Manifest | None:
        """Return the manifest (maybe an earlier one of the job), or None if the number was taken away."""
        for lower in self.numbers():
            if lower < number and (earlier := self._settle(lower, fence, draft.job_id)):
                return earlier
        try:
            for name, source in sources.items():
                self._storage.put(source, self._name(number, name))
        except StrataError:
            # Whoever takes the number away also removes the files, maybe while they are written.
            if self.decided(number) is not None:
                return None
            raise
        fields = draft.model_dump()
        manifest = Manifest(**fields, version=f"v{number}", lineage=self._lineage, fence=fence, files=hashes)
        self._fences.check(fence)
        data = manifest.model_dump_json(indent=1).encode()
        return manifest if self._storage.create_exclusive(self._name(number, MANIFEST), data) else None

    def _settle(self, number: int, fence: int, job_id: str) -> Manifest | None:
        """Wait for or end what happens under a lower number; return its manifest if it is of the same job."""
        started = time.monotonic()
        while (data := self.decided(number)) is None:
            owner = self._owner(number)
            if owner is not None and owner.fence > fence:
                self._fences.raise_to(owner.fence)
                self._fences.check(fence)
            patience = (
                self._settle_seconds if owner is not None else min(self._settle_seconds, _NAMELESS_SECONDS)
            )
            if (owner is not None and owner.fence < fence) or time.monotonic() - started >= patience:
                self._give_up(number)
            else:
                time.sleep(0.02)
        if is_abandoned(data):
            return None
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError:
            return None
        return manifest if manifest.job_id == job_id else None

    def _owner(self, number: int) -> Reservation | None:
        try:
            return Reservation.model_validate_json(self._storage.read(self._name(number, RESERVATION)))
        except (NotFoundError, ValidationError):
            return None

    def _give_up(self, number: int) -> None:
        """Abandon a number unless it has its manifest, and remove its files."""
        self._storage.create_exclusive(self._name(number, MANIFEST), ABANDONED)
        data = self.decided(number)
        if data is not None and is_abandoned(data):
            self._storage.clear(f"{self._lineage}/v{number}", keep=(MANIFEST, RESERVATION))

    def _name(self, number: int, name: str) -> str:
        return f"{self._lineage}/v{number}/{name}"
