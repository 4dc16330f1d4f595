"""Let a canary answer its share and a shadow be compared; end a canary that does worse than it may.

Nothing here can keep a request from being answered: a canary that is not staged and probed is passed over,
and ``stable`` answers. Each gateway counts and judges for itself; the end of a canary is a record of its
alias, so it ends for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from adapter_store.errors import AliasConflict, StrataError
from adapter_store.names import BASE_VERSION
from adapter_store.rendering import Message
from adapter_store.versions import CANARY, SHADOW, STABLE, AliasRecord
from server.adaptation import ACTOR, Following, Leased, LiveVersions
from server.canary.draw import Asker, is_drawn
from server.canary.pace import Latency, Pace
from server.canary.rule import Rule, Verdict, judged
from server.canary.shadow import Copy, Finished, Shadow
from server.canary.tally import Tally
from server.engine import Sampling
from server.feedback.thumbs import Thumbs
from server.logs import log
from server.retrieval import Prepared

SLOTS = (STABLE, CANARY, SHADOW)
_AGAIN_SECONDS, _LONGEST_SECONDS = 2.0, 60.0
OpenShadow = Callable[[Finished], Shadow]
"""Builds the shadow's runner, which is told where to report."""


@dataclass(slots=True)
class Attempt:
    """One request to the plain name, from its lease to its end; others count nowhere."""

    leased: Leased
    asker: Asker
    messages: tuple[Message, ...]
    sampling: Sampling
    choices: int
    pace: Pace
    texts: list[str] = field(default_factory=list)

    @property
    def is_comparable(self) -> bool:
        """Tell whether a shadow would have to say the same: answered by stable, one greedy answer."""
        return self.leased.part == STABLE and self.choices == 1 and self.sampling.temperature == 0


@dataclass(slots=True)
class _Pause:
    """When a version may be brought in again, and how long that pause is.

    It doubles while others keep taking the bank: they ask for a version by name and would wait each time.
    """

    seconds: float = 0.0
    until: float = 0.0

    def begin(self) -> None:
        self.seconds = min(max(2 * self.seconds, _AGAIN_SECONDS), _LONGEST_SECONDS)
        self.until = time.monotonic() + self.seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until


class Trials:
    """Follow the aliases ``canary`` and ``shadow`` of one gateway."""

    def __init__(
        self,
        live: LiveVersions,
        following: Following,
        *,
        rule: Rule,
        thumbs: Thumbs,
        banks: int,
        open_shadow: OpenShadow,
    ) -> None:
        self.rule = rule
        self._live = live
        self._aliases = following.store.aliases
        self._residents = following.residents
        self._metrics = following.metrics
        self._poll_seconds = following.poll_seconds
        self._thumbs = thumbs
        self._banks = banks
        self._shadow = open_shadow(self._shadow_finished)
        self._parts: dict[str, tuple[str, int]] = {}
        self._tallies: dict[str, Tally] = {slot: Tally() for slot in SLOTS}
        self._thumbs_before: dict[str, tuple[int, int]] = dict.fromkeys(SLOTS, (0, 0))
        self._reasons: dict[str, str] = {}
        self._pauses: dict[str, _Pause] = {}
        self._ending: tuple[AliasRecord, Verdict] | None = None
        self._stopped_revision = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Follow in the background."""
        works = (self._repeat(self.judge), self._repeat(self.bring), self._shadow.run())
        self._tasks = [asyncio.create_task(work, name="canary") for work in works]

    async def stop(self) -> None:
        """Stop following; requests under way are not touched."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @asynccontextmanager
    async def lease(self, model: str, asker: Asker) -> AsyncIterator[Leased]:
        """Hold the version that answers ``model``; as ``LiveVersions.lease``, but for the canary's share."""
        record = self._taking_part(CANARY) if model == self._live.name else None
        if record is None or not is_drawn(record, asker()) or not self._residents.ready(record.version):
            async with self._live.lease(model) as leased:
                yield leased
            return
        resident = self._residents.hold_ready(record.version)
        give_back = self._residents.giving_back(record.version)
        try:
            yield Leased(record.version, CANARY, resident, CANARY, give_back)
        finally:
            give_back()

    def failed(self, attempt: Attempt) -> None:
        """Count a request whose answer failed by a fault of this side."""
        if attempt.leased.part is not None:
            self._count(attempt.leased.part, attempt.leased.version, self._took(attempt), failed=True)

    def given_up(self, attempt: Attempt) -> None:
        """Count a request whose client did not wait for the end: it took at least as long as until now."""
        if attempt.leased.part is not None:
            self._count(attempt.leased.part, attempt.leased.version, self._took(attempt), failed=False)

    def answered(self, attempt: Attempt, prepared: Prepared) -> None:
        """Count an answer, and have the shadow answer again if it is drawn."""
        if attempt.leased.part is None:
            return
        self._count(attempt.leased.part, attempt.leased.version, self._took(attempt), failed=False)
        record = self._taking_part(SHADOW) if attempt.is_comparable else None
        if record is not None and is_drawn(record, attempt.asker()):
            text, sampling = "".join(attempt.texts), attempt.sampling
            now = time.monotonic()
            self._shadow.offer(Copy(record.version, attempt.messages, prepared, sampling, text, now))

    def answering(self, alias: str, record: AliasRecord) -> str | None:
        """Return why the version of an alias does not take its share, None if it does."""
        if not record.weight:
            return f"it has no weight: it answers only if {self._live.name}@{alias} is asked"
        if record.version == self._live.served:
            return "stable answers with the same version"
        if self._residents.ready(record.version):
            return None
        return self._reasons.get(record.version, "it is being loaded and probed")

    def seen(self) -> list[tuple[str, str, Tally]]:
        """Return slot, version and tally of each version that takes part."""
        self._notice()
        self._show()
        return [(slot, part[0], self._tallies[slot]) for slot, part in self._parts.items()]

    def agreement(self) -> tuple[int, int]:
        """Return how many answers were compared with the present shadow's, and how many were the same."""
        return self._shadow.agreement.compared, self._shadow.agreement.same

    def _taking_part(self, alias: str) -> AliasRecord | None:
        """Return the record of an alias whose version takes a share now, staged or not."""
        self._notice()
        record = self._live.alias(alias)
        if record is None or not record.weight or record.version == self._live.served:
            return None
        return None if alias == CANARY and record.revision == self._stopped_revision else record

    def _notice(self) -> None:
        """Begin to count anew once another version takes part."""
        parts = {STABLE: (self._live.served or BASE_VERSION, 0)}
        for alias in (CANARY, SHADOW):
            record = self._live.alias(alias)
            if record is not None and record.weight:
                parts[alias] = (record.version, record.since or record.revision)
        if parts == self._parts:
            return
        changed = {slot for slot in SLOTS if parts.get(slot) != self._parts.get(slot)}
        self._parts = parts
        if changed & {STABLE, SHADOW}:
            self._shadow.begin_again()
        if CANARY in changed:
            changed.add(STABLE)  # both are judged by the same hours
        thumbs = self._thumbs.read()
        for slot in changed:
            self._tallies[slot] = Tally()
            self._thumbs_before[slot] = thumbs.get(self._version_of(slot) or "", (0, 0))

    def _version_of(self, slot: str) -> str | None:
        part = self._parts.get(slot)
        return None if part is None else part[0]

    def _count(self, slot: str, version: str, took: Latency, *, failed: bool) -> None:
        times = {"first_token": took.first_token, "token": took.token}
        self._metrics.observe_slot(slot, took.whole, **times, failed=failed)
        if version == self._version_of(slot):
            self._tallies[slot].add(took, failed=failed)

    def _shadow_finished(self, version: str, seconds: float, error: Exception | None) -> None:
        self._count(SHADOW, version, Latency(seconds), failed=error is not None)

    @staticmethod
    def _took(attempt: Attempt) -> Latency:
        return attempt.pace.measured(time.perf_counter())

    async def _repeat(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await work()
            except Exception as error:  # noqa: BLE001  the next look may find the store in order again
                log("canary and shadow cannot be followed now", logging.WARNING, reason=str(error)[:300])

    async def judge(self) -> None:
        """Look once at what was seen; end the canary if the rule says so."""
        self._notice()
        self._show()
        if self._ending is None:
            record = self._taking_part(CANARY)
            verdict = record and judged(self.rule, self._tallies[CANARY], self._tallies[STABLE])
            if record is None or verdict is None:
                return
            self._ending = (record, verdict)  # from here on it answers nothing, even if the store is away
        await self._end(*self._ending)
        self._ending = None

    async def _end(self, record: AliasRecord, verdict: Verdict) -> None:
        self._stopped_revision = record.revision
        reason = f"rolled back by the rule: {verdict.reason}"
        try:
            await asyncio.to_thread(
                self._aliases.end, CANARY, expected_revision=record.revision, reason=reason, actor=ACTOR
            )
        except AliasConflict:
            return  # somebody decided at this very moment: theirs stands
        self._metrics.canary_decisions.labels(verdict.decision).inc()
        log("canary rolled back", logging.ERROR, version=record.version, reason=verdict.reason)
        self._live.look_now()

    async def bring(self) -> None:
        """Have the versions that take part staged and probed, as far as there are banks."""
        wanted = [record.version for alias in (CANARY, SHADOW) if (record := self._taking_part(alias))]
        learned = [version for version in dict.fromkeys(wanted) if version != BASE_VERSION]
        room = self._banks - 1
        kept, homeless = learned[:room], learned[room:]
        self._residents.kept = frozenset(kept)
        self._reasons = {version: text for version, text in self._reasons.items() if version in kept}
        self._reasons |= {version: self._no_bank(version) for version in homeless}
        self._pauses = {version: self._pauses.get(version, _Pause()) for version in kept}
        for version, pause in self._pauses.items():
            if not pause.is_over:
                continue
            if self._residents.ready(version):
                pause.seconds = 0.0  # nobody took its bank all the while
                continue
            try:
                await self._residents.bring(version)
                self._reasons.pop(version, None)
            except StrataError as error:
                self._reasons[version] = error.message
            pause.begin()

    def _no_bank(self, version: str) -> str:
        held = f"no bank is left for {version}: stable and canary take the {self._banks} there are"
        return f"{held}; set STRATA_BANKS to {self._banks + 1}"

    def _show(self) -> None:
        """Publish thumbs and readiness of each part."""
        thumbs = self._thumbs.read()
        for slot, tally in self._tallies.items():
            version = self._version_of(slot)
            now, before = thumbs.get(version or "", (0, 0)), self._thumbs_before[slot]
            tally.thumbs_up, tally.thumbs_down = max(0, now[0] - before[0]), max(0, now[1] - before[1])
            ready = version is not None and self._residents.ready(version)
            self._metrics.show_slot(slot, ready=ready, up=tally.thumbs_up, down=tally.thumbs_down)
