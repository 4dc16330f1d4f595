"""Keep the right adapter versions resident while requests run: resolve, lease, follow, swap, refuse.

A model name is ``<name>`` (alias ``stable``), ``<name>@<alias>``, ``<name>@v12`` or ``<name>@base``.
A request leases its version and finishes on it, whatever is published meanwhile. A new version is verified,
staged into an idle bank and probed before the first request sees it; one that fails never serves, and its
alias is put back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_store.errors import (
    AliasConflict,
    ConflictError,
    NotFoundError,
    ProbeFailed,
    StateError,
    StoreError,
    StrataError,
    UnavailableError,
)
from adapter_store.names import BASE_VERSION, check_version_id
from adapter_store.versions import AliasRecord, Manifest, VersionStore
from server.engine import Engine
from server.logs import log
from server.metrics import Metrics

if TYPE_CHECKING:
    from adapter_store.state import AdapterState

STABLE = "stable"
ACTOR = "gateway"
Probe = Callable[["Resident", Path], Awaitable[None]]
"""Raises ProbeFailed when a staged version does not reproduce its recorded answer."""
LoadState = Callable[[Path], "AdapterState"]


class UnknownModel(NotFoundError):
    """Report a model, alias or version that does not exist, with what does."""

    code = "model_not_found"


@dataclass(frozen=True, slots=True)
class Resident:
    """A version whose increments lie in a bank of the engine."""

    version: str
    state: AdapterState
    manifest: Manifest
    slot: int


@dataclass(frozen=True, slots=True)
class Leased:
    """What one request holds until it is done: its version and the state to compute coefficients with."""

    version: str
    alias: str | None
    resident: Resident | None


class LiveVersions:
    """Hold the resident versions of one lineage and the leases on them."""

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        store: VersionStore,
        load_state: LoadState,
        probe: Probe,
        metrics: Metrics,
        banks: int = 2,
        poll_seconds: float = 0.5,
        drain_timeout_seconds: float = 120.0,
    ) -> None:
        self._name = name
        self._engine = engine
        self._store = store
        self._load_state = load_state
        self._probe = probe
        self._metrics = metrics
        self._banks = banks
        self._poll_seconds = poll_seconds
        self._drain_timeout_seconds = drain_timeout_seconds
        self._ready: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        self._leases: Counter[str] = Counter()
        self._draining: set[str] = set()
        self._refused: dict[str, StrataError] = {}
        self._aliases: dict[str, AliasRecord] = {}
        self._served: str | None = None
        self._loading = asyncio.Lock()
        self._idle = asyncio.Event()
        self._stuck_revisions: set[int] = set()
        self._poke = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    @property
    def served(self) -> str | None:
        """Return the version that ``stable`` answers with now; None before the first one is probed."""
        return self._served

    @property
    def refused(self) -> dict[str, str]:
        """Return the versions that are never served, with the reason."""
        return {version: error.message for version, error in self._refused.items()}

    def resident(self, version: str) -> Resident | None:
        """Return a version that is loaded and probed, or None."""
        return self._ready.get(version)

    def inflight(self) -> dict[str, int]:
        """Return the leases of each bank; ``base`` counts the requests without increments."""
        counts = {"base": self._leases[BASE_VERSION], **{f"bank{slot}": 0 for slot in range(self._banks)}}
        for version, resident in self._ready.items():
            counts[f"bank{resident.slot}"] = self._leases[version]
        return counts

    async def start(self) -> None:
        """Serve what ``stable`` names, then follow it; falls back to an earlier version if that one fails."""
        while self._served is None:
            try:
                await self.refresh()
            except OSError as error:
                log("the version store cannot be read yet", logging.WARNING, reason=str(error)[:300])
            if self._served is None:
                await asyncio.sleep(self._poll_seconds)
        self._follower = asyncio.create_task(self._follow(), name="follow-aliases")

    async def stop(self) -> None:
        """Stop following; leases stay valid."""
        if self._follower is not None:
            self._follower.cancel()
            with suppress(asyncio.CancelledError):
                await self._follower

    def look_now(self) -> None:
        """Look for moved aliases at once instead of at the next poll."""
        self._poke.set()

    @asynccontextmanager
    async def lease(self, model: str) -> AsyncIterator[Leased]:
        """Hold the version that ``model`` names for the length of one request.

        Raises:
            UnknownModel: no such model, alias or version; the message lists what exists.
            ConflictError: the version failed its probe or is damaged.
            UnavailableError: no bank became free in time.
        """
        alias, version = await self.resolve(model)
        resident = await self._acquire(version)
        try:
            yield Leased(version, alias, resident)
        finally:
            self._drop(version)

    async def resolve(self, model: str) -> tuple[str | None, str]:
        """Return the alias (None for a pinned version) and the version that ``model`` names."""
        name, _, reference = model.partition("@")
        if name != self._name or (not reference and "@" in model):
            raise await self._unknown(model)
        reference = reference or STABLE
        if reference == STABLE:
            return STABLE, self._served or BASE_VERSION
        if _is_version(reference):
            known = reference == BASE_VERSION or reference in self._ready
            if not known and not await asyncio.to_thread(self._store.exists, reference):
                raise await self._unknown(model)
            return None, reference
        if reference not in self._aliases:
            await self._read_aliases()
        if reference not in self._aliases:
            raise await self._unknown(model)
        return reference, self._aliases[reference].version

    async def refresh(self) -> None:
        """Read the aliases once and, if ``stable`` moved, load, probe and serve its version.

        A version that fails is refused for good and ``stable`` put back by compare-and-set: to what serves
        now, or at the start to the newest earlier version that works.
        """
        await self._read_aliases()
        record = self._aliases.get(STABLE)
        wanted = record.version if record else BASE_VERSION
        started = time.perf_counter()
        while wanted != self._served:
            try:
                resident = await self._resident(wanted)
            except UnavailableError as error:
                log("stable cannot be loaded yet", logging.WARNING, version=wanted, reason=error.message)
                return
            except StrataError as error:
                back = self._served or await self._earlier_than(wanted)
                record = await self._put_back(record, back, f"{wanted} was refused: {error.message}")
                wanted = back
            else:
                before, self._served = self._served, wanted
                self._show(wanted, resident, before, time.perf_counter() - started)

    async def _read_aliases(self) -> None:
        self._aliases = await asyncio.to_thread(self._store.aliases.all)
        shown = {alias: record.version for alias, record in self._aliases.items()}
        self._metrics.show_aliases({STABLE: BASE_VERSION, **shown})
        self._metrics.show_inflight(self.inflight())

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._poke.wait(), self._poll_seconds)
            self._poke.clear()
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001  a store that is away for a while must not end the following
                log("aliases cannot be followed now", logging.WARNING, reason=str(error)[:300])

    async def _unknown(self, model: str) -> UnknownModel:
        versions = [manifest.version for manifest in await asyncio.to_thread(self._store.list)]
        references = [BASE_VERSION, *sorted({STABLE, *self._aliases}), *versions[-10:]]
        exist = ", ".join([self._name, *(f"{self._name}@{item}" for item in references)])
        return UnknownModel(f"the model {model[:120]!r} does not exist; there are: {exist}", param="model")

    async def _acquire(self, version: str) -> Resident | None:
        if version == BASE_VERSION:
            self._leases[version] += 1
            return None
        if version not in self._ready or version in self._draining:
            try:
                async with asyncio.timeout(self._drain_timeout_seconds + 60):
                    return await self._load(version, hold=True)
            except TimeoutError:
                raise UnavailableError(
                    f"version {version} could not be loaded in time; try again later"
                ) from None
        self._leases[version] += 1
        self._ready.move_to_end(version)
        return self._ready[version]

    def _drop(self, version: str) -> None:
        self._leases[version] -= 1
        if version in self._draining:
            self._idle.set()

    async def _resident(self, version: str) -> Resident | None:
        return None if version == BASE_VERSION else await self._load(version, hold=False)

    async def _load(self, version: str, *, hold: bool) -> Resident:
        """Make ``version`` resident, one at a time; ``hold`` takes a lease before anyone can evict it."""
        async with self._loading:
            resident = self._ready.get(version)
            if resident is None:
                if version in self._refused:
                    raise _never_served(version, self._refused[version])
                try:
                    resident = await self._bring_in(version)
                except (StoreError, StateError) as error:
                    self._refuse(version, error)
                    raise _never_served(version, error) from error
                except OSError as error:
                    text = f"version {version} cannot be read from the store now; try again later"
                    raise UnavailableError(text) from error
                self._metrics.loads.labels("ok").inc()
            if hold:
                self._leases[version] += 1
            self._ready.move_to_end(version)
            return resident

    async def _bring_in(self, version: str) -> Resident:
        manifest = await asyncio.to_thread(self._store.manifest, version)
        folder = await asyncio.to_thread(self._store.fetch, version)
        state = await asyncio.to_thread(self._load_state, folder)
        slot = await self._make_room()
        resident = Resident(version, state, manifest, slot)
        try:
            await self._engine.stage(version, state)
            await self._probe(resident, folder)
        except BaseException:
            self._engine.release(version)
            raise
        self._ready[version] = resident
        return resident

    async def _make_room(self) -> int:
        """Return a free slot, draining the least recently used version if there is none."""
        taken = {resident.slot for resident in self._ready.values()}
        free = sorted(set(range(self._banks)) - taken)
        if free:
            return free[0]
        candidates = [version for version in self._ready if version != self._served]
        victim = min(candidates, key=lambda version: bool(self._leases[version]))
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

    def _refuse(self, version: str, error: StrataError) -> None:
        self._refused[version] = error
        self._metrics.loads.labels("refused").inc()
        self._metrics.rejected.labels(error.code).inc()
        log("version refused", logging.ERROR, version=version, code=error.code, reason=error.message)

    async def _put_back(self, record: AliasRecord | None, version: str, reason: str) -> AliasRecord | None:
        """Move ``stable`` from ``record`` to ``version``; at most one try for each revision of the alias."""
        if record is None or record.revision in self._stuck_revisions:
            return None
        self._stuck_revisions.add(record.revision)
        try:
            moved = await asyncio.to_thread(
                self._store.aliases.move,
                STABLE,
                version,
                expected_revision=record.revision,
                reason=reason[:500],
                actor=ACTOR,
            )
        except AliasConflict:
            return None  # somebody moved it meanwhile; the next look sees where
        except (StrataError, OSError) as fault:
            log("stable cannot be put back", logging.ERROR, version=version, reason=str(fault)[:300])
            return None
        log("stable put back", logging.ERROR, version=version, reason=reason)
        return moved

    async def _earlier_than(self, version: str) -> str:
        history = await asyncio.to_thread(self._store.aliases.history, STABLE)
        for record in reversed(history):
            if record.version != version and record.version not in self._refused:
                return record.version
        return BASE_VERSION

    def _show(self, version: str, resident: Resident | None, before: str | None, seconds: float) -> None:
        if before is not None:
            self._metrics.swap_seconds.observe(seconds)
            if resident is not None:
                self._metrics.publish_to_served_seconds.set(
                    max(0.0, time.time() - resident.manifest.created_at)
                )
        show_quality(self._metrics, resident.manifest if resident else None)
        log("stable serves", version=version, before=before, swap_seconds=round(seconds, 4))


def show_quality(metrics: Metrics, manifest: Manifest | None) -> None:
    """Publish the measured quality of the served version; the base has learned nothing and shows nothing."""
    if manifest is None or not manifest.accuracy.rows:
        metrics.show_quality(
            accuracy={}, forgetting={}, leak={}, average=None, backward_transfer=None, retention=None
        )
        return
    matrix = manifest.accuracy
    forgetting = {task: matrix.forgetting_of(task) for task in matrix.tasks}
    accuracy = {task: matrix.score(len(matrix.rows) - 1, task) for task in matrix.tasks}
    metrics.show_quality(
        accuracy={task: score for task, score in accuracy.items() if score is not None},
        forgetting={task: lost for task, lost in forgetting.items() if lost is not None},
        leak=manifest.routing_leak,
        average=matrix.average_accuracy(),
        backward_transfer=matrix.backward_transfer(),
        retention=manifest.zero_shot_retention,
    )


def _is_version(reference: str) -> bool:
    try:
        check_version_id(reference)
    except StrataError:
        return False
    return True


def _never_served(version: str, error: StrataError) -> ConflictError:
    fault = ConflictError(f"version {version} is not served: {error.message}", param="model")
    fault.code = error.code if isinstance(error, ProbeFailed) else "version_refused"
    return fault
