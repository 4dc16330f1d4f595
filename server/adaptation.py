"""Answer with the right version while versions come and go: resolve, lease, follow, swap, put back.

A model name is ``<name>`` (alias ``stable``), ``<name>@<alias>``, ``<name>@v12`` or ``<name>@base``.
A request leases its version and finishes on it, whatever is published meanwhile. A new version is verified,
staged into an idle bank and probed before the first request sees it; one that fails never serves. Only one
that is damaged or fails its probe has its alias put back: other faults may be this gateway's own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from adapter_store.errors import (
    AliasConflict,
    AliasCorrupt,
    BaseMismatch,
    NotFoundError,
    ProbeFailed,
    StateError,
    StoreError,
    StrataError,
    TargetMismatch,
    UnavailableError,
    VersionCorrupt,
)
from adapter_store.matrix import AccuracyMatrix
from adapter_store.names import BASE_VERSION, check_version_id
from adapter_store.versions import STABLE, AliasRecord, Manifest, VersionStore, comparable_since
from server.logs import log
from server.metrics import Metrics, number_of
from server.residency import Resident, Residents, VersionRefused

ACTOR = "gateway"
_NAMES_SHOWN = 10
_UNREAD = "the version store cannot be read now; the log says why"


class UnknownModel(NotFoundError):
    """Report a model, alias or version that does not exist, with what does."""

    code = "model_not_found"

    @classmethod
    def among(cls, model: str, names: Sequence[str]) -> Self:
        """Return the error for ``model``; the first of ``names``, all that there are, stand in it."""
        shown = ", ".join(names[:_NAMES_SHOWN])
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        text = f"the model {model[:120]!r} does not exist; there are: {shown}{more}"
        return cls(f"{text} (GET /v1/models lists them)", param="model")


class WrongBase(StateError):
    """Report that what ``stable`` names was made for another base or other linears than this gateway runs."""

    code = "wrong_base"


@dataclass(frozen=True, slots=True)
class Leased:
    """What one request holds until it is done: its version, and its increments unless that is the base.

    ``part`` says which of ``stable`` and ``canary`` answers the plain name; None: another name was asked.
    ``give_back`` may be called before that, and again: once the engine is done, a slow reader must not keep
    the version's bank.
    """

    version: str
    alias: str | None
    resident: Resident | None
    part: str | None = None
    give_back: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Following:
    """Hold what it takes to follow aliases: where they move, who holds versions, and how often to look."""

    store: VersionStore
    residents: Residents
    metrics: Metrics
    poll_seconds: float = 0.5


class LiveVersions:
    """Know which version every model name stands for, and follow ``stable`` as it moves."""

    def __init__(self, name: str, following: Following) -> None:
        self._name = name
        self._store = following.store
        self._residents = following.residents
        self._metrics = following.metrics
        self._poll_seconds = following.poll_seconds
        self._aliases: dict[str, AliasRecord] = {}
        self._served: str | None = None
        self._stuck_revisions: set[int] = set()
        self._said: str | None = None
        self._poke = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    @property
    def served(self) -> str | None:
        """Return the version that ``stable`` answers with now; None before the first one is probed."""
        return self._served

    @property
    def name(self) -> str:
        """Return the plain model name, which stands for ``stable``."""
        return self._name

    @property
    def refused(self) -> dict[str, str]:
        """Return the versions that are not served, with the reason, as of the last look at each."""
        return self._residents.refused

    async def why_refused(self, version: str) -> str | None:
        """Return why a version is not served, None if it may be: its files are looked at again.

        Raises:
            StoreError: the store cannot be read now.
        """
        try:
            await self._residents.look_again(version)
        except OSError as error:
            raise StoreError(f"version {version} cannot be read now: {error.strerror}") from error
        return self.refused.get(version)

    def alias(self, alias: str) -> AliasRecord | None:
        """Return what an alias named at the last look."""
        return self._aliases.get(alias)

    def inflight(self) -> dict[str, int]:
        """Return the requests in flight by bank."""
        return self._residents.inflight()

    async def start(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Serve what ``stable`` names, then follow it; falls back to an earlier version if that one fails.

        ``tell`` hears what the start waits for; no place on this machine is in it.

        Raises:
            WrongBase: the version was made for another base; the message says for which.
        """
        while self._served is None:
            try:
                await self.refresh()
            except (OSError, StoreError, UnavailableError) as error:
                self._say_once("the version store cannot be read yet", reason=str(error)[:300])
                tell(error.message if isinstance(error, AliasCorrupt) else _UNREAD)
            else:
                tell("the version that stable names is being loaded")
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
        resident = await self._residents.hold(version)
        give_back = self._residents.giving_back(version)
        try:
            part = STABLE if model == self._name else None
            yield Leased(version, alias, resident, part, give_back)
        finally:
            give_back()

    async def resolve(self, model: str) -> tuple[str | None, str]:
        """Return the alias (None for a pinned version) and the version that ``model`` names."""
        name, _, reference = model.partition("@")
        if name != self._name or (not reference and "@" in model):
            raise await self._unknown(model)
        reference = reference or STABLE
        if reference == STABLE:
            return STABLE, self._served or BASE_VERSION
        if _is_version(reference):
            known = reference == BASE_VERSION or reference in self._residents
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

        A version that fails is not served: instead what serves now, or at the start its nearest ancestor
        that works. Only if it is damaged or fails its probe, ``stable`` is put back by
        compare-and-set; else the fault may be of this gateway, and the alias belongs to all.

        Raises:
            WrongBase: at the start, the version was made for another base or other linears.
        """
        await self._read_aliases()
        record = self._aliases.get(STABLE)
        wanted = record.version if record else BASE_VERSION
        tried: set[str] = set()
        started = time.perf_counter()
        while wanted != self._served:
            tried.add(wanted)
            try:
                resident = await self._residents.bring(wanted)
            except UnavailableError as error:
                self._say_once("stable cannot be loaded yet", version=wanted, reason=error.message)
                return
            except StrataError as error:
                cause = error.cause if isinstance(error, VersionRefused) else error
                if self._served is None and isinstance(cause, BaseMismatch | TargetMismatch):
                    raise await self._wrong_base(wanted, cause) from error
                back = self._served or await self._instead_of(wanted, tried)
                if isinstance(cause, ProbeFailed | VersionCorrupt):
                    record = await self._put_back(record, back, f"{wanted} was refused: {cause.message}")
                else:
                    record = None
                    self._say_once("stable is not followed", version=wanted, reason=cause.message)
                wanted = back
            else:
                self._said = None
                self._serve(wanted, resident, time.perf_counter() - started)

    def _serve(self, version: str, resident: Resident | None, seconds: float) -> None:
        before, self._served = self._served, version
        self._residents.pinned = version
        if before is not None:
            self._metrics.swap_seconds.observe(seconds)
            if resident is not None:
                age = time.time() - resident.manifest.created_at
                self._metrics.publish_to_served_seconds.set(max(0.0, age))
        self._metrics.served_version.set(number_of(version))
        show_quality(self._metrics, resident.manifest if resident else None)
        log("stable serves", version=version, before=before, swap_seconds=round(seconds, 4))

    async def _read_aliases(self) -> None:
        self._aliases = await asyncio.to_thread(self._store.aliases.all)
        shown = {alias: record.version for alias, record in self._aliases.items()}
        moved_at = {alias: record.moved_at for alias, record in self._aliases.items()}
        self._metrics.show_aliases({STABLE: BASE_VERSION, **shown}, moved_at)

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._poke.wait(), self._poll_seconds)
            self._poke.clear()
            try:
                await self.refresh()
                await self._residents.look_at_refused()
            except Exception as error:  # noqa: BLE001  a store that is away for a while must not end the following
                log("aliases cannot be followed now", logging.WARNING, reason=str(error)[:300])

    async def _unknown(self, model: str) -> UnknownModel:
        versions = [manifest.version for manifest in await asyncio.to_thread(self._store.list)]
        references = [BASE_VERSION, *sorted({STABLE, *self._aliases}), *reversed(versions)]
        return UnknownModel.among(model, [self._name, *(f"{self._name}@{item}" for item in references)])

    async def _put_back(self, record: AliasRecord | None, version: str, reason: str) -> AliasRecord | None:
        """Move ``stable`` from ``record`` to ``version``; once done, never again for this revision."""
        if record is None or record.revision in self._stuck_revisions:
            return None
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
            self._stuck_revisions.add(record.revision)
            return None  # somebody moved it meanwhile; the next look sees where
        except (StrataError, OSError) as fault:
            log("stable cannot be put back yet", logging.ERROR, version=version, reason=str(fault)[:300])
            return None
        self._stuck_revisions.add(record.revision)
        log("stable put back", logging.ERROR, version=version, reason=reason)
        return moved

    async def _instead_of(self, version: str, tried: set[str]) -> str:
        """Return the nearest ancestor that can be served: it knows most of what ``version`` knows.

        Where there is none, what ``stable`` named last.
        """
        known = {each.version: each for each in await asyncio.to_thread(self._store.list)}
        while version in known:
            version = known[version].parent
            if version in known and version not in tried and version not in self.refused:
                return version
        return await self._earlier_than(tried)

    async def _earlier_than(self, tried: set[str]) -> str:
        """Return the version that ``stable`` named last and that was not tried yet; the base at the end."""
        history = await asyncio.to_thread(self._store.aliases.history, STABLE)
        for record in reversed(history):
            if record.version not in tried and record.version not in self.refused:
                return record.version
        return BASE_VERSION

    async def _wrong_base(self, version: str, cause: StrataError) -> WrongBase:
        if isinstance(cause, TargetMismatch):
            return WrongBase(f"stable names version {version}, which does not fit: {cause.message}")
        manifest = await asyncio.to_thread(self._store.manifest, version)
        text = (
            f"stable names version {version}, which was made for the base {manifest.base_id} "
            f"({manifest.base_digest[:12]}), and another base is loaded"
        )
        advice = "set STRATA_BASE to that base, or give this base a STRATA_HOME and a store of its own"
        return WrongBase(f"{text}: {advice}")

    def _say_once(self, text: str, **fields: Any) -> None:
        """Log what every poll would find again only when it is new."""
        said = f"{text} {fields}"
        if said != self._said:
            self._said = said
            log(text, logging.WARNING, **fields)


def show_quality(metrics: Metrics, manifest: Manifest | None) -> None:
    """Publish the measured quality of the served version; the base has learned nothing and shows nothing."""
    metrics.show_matrix(manifest.accuracy if manifest else AccuracyMatrix.empty())
    if manifest is None or not manifest.accuracy.rows:
        metrics.show_quality(
            accuracy={}, forgetting={}, leak={}, average=None, backward_transfer=None, retention=None
        )
        return
    matrix = manifest.accuracy
    since = comparable_since(manifest.splits)
    forgetting = {task: matrix.forgetting_of(task, since) for task in matrix.tasks}
    accuracy = {task: matrix.score(len(matrix.rows) - 1, task) for task in matrix.tasks}
    metrics.show_quality(
        accuracy={task: score for task, score in accuracy.items() if score is not None},
        forgetting={task: lost for task, lost in forgetting.items() if lost is not None},
        leak=manifest.routing_leak,
        average=matrix.average_accuracy(),
        backward_transfer=matrix.backward_transfer(since),
        retention=manifest.zero_shot_retention,
    )


def _is_version(reference: str) -> bool:
    try:
        check_version_id(reference)
    except StrataError:
        return False
    return True
