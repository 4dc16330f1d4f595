"""Hold versions in the engine's banks: bring in, prove, lease, drain, and refuse what fails.

What is refused stays so, but for a damaged version whose files were restored: that is looked for every few
seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_store.errors import (
    ConflictError,
    ProbeFailed,
    StateError,
    StoreError,
    StrataError,
    UnavailableError,
    VersionCorrupt,
)
from adapter_store.names import BASE_VERSION
from adapter_store.versions import Manifest, VersionStore
from server.engine import Engine
from server.logs import log
from server.metrics import Metrics

if TYPE_CHECKING:
    from adapter_store.served import ServedPool
    from adapter_store.state import AdapterState

Probe = Callable[["Resident", Path], Awaitable[None]]
"""Raises ProbeFailed when a staged version does not reproduce its recorded answer."""
LoadState = Callable[[Path], "AdapterState"]
OpenPool = Callable[["AdapterState"], "ServedPool"]
"""Folds a version's contexts into the pool that the engine holds."""
_LOAD_SECONDS = 60.0
_LOOK_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Entry:
    """Say what a version goes through before it answers: it is read, folded (None: as it is) and proven."""

    load_state: LoadState
    open_pool: OpenPool | None
    probe: Probe


@dataclass(frozen=True, slots=True)
class Resident:
    """A version whose increments lie in a bank of the engine; ``pool`` None: as its state holds them."""

    version: str
    state: AdapterState
    manifest: Manifest
    slot: int
    pool: ServedPool | None = None


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a version is not served, and the stamps that its files had before they were read."""

    cause: StrataError
    stamps: tuple[str, ...]

    @property
    def can_be_mended(self) -> bool:
        """Tell whether other files would help: all else is found in files that are as they were published."""
        return isinstance(self.cause, VersionCorrupt)


class _Laps:
    """Time the parts of bringing a version in, for the log."""

    def __init__(self) -> None:
        self.seconds: dict[str, Any] = {}
        self._began = time.perf_counter()

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[f"{part}_seconds"] = round(now - self._began, 4)
        self._began = now


class Residents:
    """Keep as many versions in the banks as there are banks; one is brought in at a time.

    Attributes:
        pinned: the version that is never drained to make room, or None.
        kept: versions that are drained only if no other can be.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        store: VersionStore,
        entry: Entry,
        metrics: Metrics,
        banks: int,
        drain_timeout_seconds: float = 120.0,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self.pinned: str | None = None
        self.kept: frozenset[str] = frozenset()
        self._engine = engine
        self._store = store
        self._load_state = entry.load_state
        self._open_pool = entry.open_pool
        self._probe = entry.probe
        self._metrics = metrics
        self._banks = banks
        self._drain_timeout_seconds = drain_timeout_seconds
        self._ready: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        self._leases: Counter[str] = Counter()
        self._draining: set[str] = set()
        self._refused: dict[str, _Refusal] = {}
        self._look_seconds = look_seconds
        self._looked_at: dict[str, float] = {}
        self._loading = asyncio.Lock()
        self._idle = asyncio.Event()

    def __contains__(self, version: str) -> bool:
        return version in self._ready

    @property
    def refused(self) -> dict[str, str]:
        """Return the versions that are not served, with the reason."""
        return {version: refusal.cause.message for version, refusal in self._refused.items()}

    def inflight(self) -> dict[str, int]:
        """Return the leases of each bank; ``base`` counts the requests without increments."""
        counts = {"base": self._leases[BASE_VERSION], **{f"bank{slot}": 0 for slot in range(self._banks)}}
        for version, resident in self._ready.items():
            counts[f"bank{resident.slot}"] = self._leases[version]
        return counts

    async def hold(self, version: str) -> Resident | None:
        """Lease ``version``, bringing it in if need be; None stands for the base. Give it back with ``drop``.

        Raises:
            VersionRefused: the version is damaged, failed its probe or does not fit this base.
            UnavailableError: no bank became free in time, or the store cannot be read.
        """
        if not self.ready(version):
            try:
                async with asyncio.timeout(self._drain_timeout_seconds + _LOAD_SECONDS):
                    return await self._load(version, lease=True)
            except TimeoutError:
                text = f"version {version} could not be loaded in time; try again later"
                raise UnavailableError(text) from None
        return self.hold_ready(version)

    def hold_ready(self, version: str) -> Resident | None:
        """Lease a version that is ``ready`` at once; as ``hold`` else."""
        self._leases[version] += 1
        if version == BASE_VERSION:
            return None
        self._ready.move_to_end(version)
        return self._ready[version]

    def ready(self, version: str) -> bool:
        """Tell whether ``version`` answers without being brought in first."""
        if version == BASE_VERSION:
            return True
        return version in self._ready and version not in self._draining and version in self._engine.loaded()

    def giving_back(self, version: str) -> Callable[[], None]:
        """Return what gives a lease back once, however often it is called."""
        left = [version]
        return lambda: self.drop(left.pop()) if left else None

    def drop(self, version: str) -> None:
        """Give back one lease of ``version``."""
        self._leases[version] -= 1
        if version in self._draining:
            self._idle.set()

    async def bring(self, version: str) -> Resident | None:
        """Make ``version`` resident without a lease; None stands for the base. Raises as ``hold``."""
        if version == BASE_VERSION:
            return None
        if self.ready(version):
            self._ready.move_to_end(version)
            return self._ready[version]
        return await self._load(version, lease=False)

    async def _load(self, version: str, *, lease: bool) -> Resident:
        """Make ``version`` resident, one at a time; a lease is taken before anyone can evict it."""
        async with self._loading:
            if version not in self._engine.loaded():  # an engine that was started again may have lost it
                self._ready.pop(version, None)
            resident = self._ready.get(version)
            if resident is None:
                resident = await self._try_to_bring_in(version)
            if lease:
                self._leases[version] += 1
            self._ready.move_to_end(version)
            return resident

    async def look_again(self, version: str) -> None:
        """Forget that a damaged version was refused if its files were restored since.

        Raises:
            StoreError, OSError: the store cannot be read now.
        """
        refusal = self._refused.get(version)
        if refusal is None or not refusal.can_be_mended:
            return
        self._looked_at[version] = time.monotonic()
        stamps = await asyncio.to_thread(self._store.stamps, version)
        if stamps == refusal.stamps:
            return
        damage: VersionCorrupt | None = None
        try:
            await asyncio.to_thread(self._store.verify, version)
        except VersionCorrupt as error:
            damage = error
        if self._refused.get(version) is not refusal:
            return  # a request was there first, and may have found more of the files restored
        if damage is not None:
            self._refused[version] = _Refusal(damage, stamps)
            return
        del self._refused[version]
        log("version was restored; promote it to serve it", version=version, was=refusal.cause.message)

    async def look_at_refused(self) -> None:
        """Look whether damaged versions were restored, every few seconds; raises as ``look_again``."""
        for version in list(self._refused):
            if self._may_look_again(version):
                await self.look_again(version)

    def _may_look_again(self, version: str) -> bool:
        """Tell whether it is time to look for restored files: who is refused may ask again at once."""
        looked_at = self._looked_at.get(version)
        return looked_at is None or time.monotonic() - looked_at >= self._look_seconds

    async def _try_to_bring_in(self, version: str) -> Resident:
        stamps: tuple[str, ...] = ()
        try:
            if self._may_look_again(version):
                await self.look_again(version)
            if version in self._refused:
                raise VersionRefused(version, self._refused[version].cause)
            stamps = await asyncio.to_thread(self._store.stamps, version)
            resident = await self._bring_in(version)
        except (VersionCorrupt, ProbeFailed, StateError) as error:
            self._refuse(version, _Refusal(error, stamps))
            raise VersionRefused(version, error) from error
        except (StoreError, OSError) as error:
            log("version cannot be read now", logging.WARNING, version=version, reason=str(error)[:300])
            text = f"version {version} cannot be read from the store now; try again later"
            raise UnavailableError(text) from error
        self._metrics.loads.labels("ok").inc()
        return resident

    async def _bring_in(self, version: str) -> Resident:
        """Verify, stage and probe; only then is the version ready."""
        laps = _Laps()
        manifest = await asyncio.to_thread(self._store.manifest, version)
        laps.end("manifest")
        folder = await asyncio.to_thread(self._store.fetch, version)
        laps.end("verify")
        state = await asyncio.to_thread(self._load_state, folder)
        laps.end("load")
        pool = await asyncio.to_thread(self._open_pool, state) if self._open_pool else None
        staged = await asyncio.to_thread(pool.staged) if pool else state
        laps.end("fold")
        resident = Resident(version, state, manifest, await self._make_room(), pool)
        laps.end("room")
        try:
            await self._engine.stage(version, staged)
            laps.end("stage")
            await self._probe(resident, folder)
            laps.end("probe")
        except BaseException:
            self._engine.release(version)
            raise
        self._ready[version] = resident
        log("version loaded", version=version, **laps.seconds)
        return resident

    async def _make_room(self) -> int:
        """Return a free slot, draining the least recently used version if there is none."""
        taken = {resident.slot for resident in self._ready.values()}
        free = sorted(set(range(self._banks)) - taken)
        if free:
            return free[0]
        candidates = [version for version in self._ready if version != self.pinned]
        victim = min(candidates, key=lambda version: (version in self.kept, bool(self._leases[version])))
        self._draining.add(victim)
        try:
            async with asyncio.timeout(self._drain_timeout_seconds):
                while self._leases[victim]:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            text = f"every bank is in use and {victim} did not become idle in time; try again later"
            raise UnavailableError(text) from None
        finally:
            self._draining.discard(victim)
        self._engine.release(victim)
        return self._ready.pop(victim).slot

    def _refuse(self, version: str, refusal: _Refusal) -> None:
        error = refusal.cause
        self._refused[version] = refusal
        self._metrics.loads.labels("refused").inc()
        self._metrics.rejected.labels(error.code).inc()
        log("version refused", logging.ERROR, version=version, code=error.code, reason=error.message)


class VersionRefused(ConflictError):
    """Report a version that this gateway does not serve; ``cause`` says why."""

    code = "version_refused"

    def __init__(self, version: str, cause: StrataError) -> None:
        super().__init__(f"version {version} is not served: {cause.message}", param="model")
        self.cause = cause
        if isinstance(cause, ProbeFailed):
            self.code = cause.code
