"""Show a canary, promote it, roll it back."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from adapter_store.errors import AliasConflict, NotFoundError
from adapter_store.versions import CANARY, SHADOW, STABLE, AliasRecord
from server.adapters.service import Adapters
from server.canary.protocol import end_body, part_body, version_body
from server.canary.rule import Decision
from server.gateway import Gateway


class Canary:
    """The canary and the shadow of the lineage ``name``."""

    def __init__(self, gateway: Gateway, name: str) -> None:
        self._adapters = Adapters(gateway, name)  # it knows which names there are
        self._gateway = gateway
        self._aliases = gateway.store.aliases

    async def show(self) -> dict[str, Any]:
        """Return both, what was seen of each version, and the rule; raise NotReady while the base loads."""
        serving = self._gateway.ready()
        trials, trouble = serving.trials, serving.trouble
        history = await asyncio.to_thread(self._aliases.history, CANARY)
        canary = history[-1] if history and not history[-1].ended else None
        shadow = await asyncio.to_thread(self._aliases.get, SHADOW)
        compared, same = trials.agreement()
        return {
            "canary": canary and part_body(canary, trouble or trials.answering(CANARY, canary)),
            "shadow": shadow and part_body(shadow, trouble or trials.answering(SHADOW, shadow)),
            "versions": [version_body(*seen) for seen in trials.seen()],
            "agreement": shadow
            and {"compared": compared, "same": same, "ratio": same / compared if compared else None},
            "rule": asdict(trials.rule),
            "rule_in_words": trials.rule.in_words(),
            "last_end": next((end_body(record) for record in reversed(history) if record.ended), None),
        }

    async def promote(self, reason: str, expected: int | None) -> dict[str, Any]:
        """Let ``stable`` name the canary's version, then end the canary.

        Raises:
            NotFoundError: there is no canary.
            AliasConflict: canary or stable moved meanwhile; nothing was done.
            ConflictError: the version is one that this gateway refuses to serve.
        """
        record = await self._present(expected)
        stable = await asyncio.to_thread(self._aliases.get, STABLE)
        seen = stable.revision if stable else 0
        moved = await self._adapters.move(STABLE, record.version, f"the canary was promoted: {reason}", seen)
        try:
            await self._adapters.end(CANARY, f"promoted: {reason}", record.revision)
        except AliasConflict:
            pass  # the next canary is there already; this one is stable all the same
        return {**self._decided("promoted", record, reason), "stable": moved}

    async def roll_back(self, reason: str, expected: int | None) -> dict[str, Any]:
        """End the canary; raises as ``promote``."""
        record = await self._present(expected)
        await self._adapters.end(CANARY, f"rolled back: {reason}", record.revision)
        return self._decided("rolled_back", record, reason)

    async def _present(self, expected: int | None) -> AliasRecord:
        record = await asyncio.to_thread(self._aliases.get, CANARY)
        if record is None:
            text = "there is no canary; PUT version and weight to /v1/adapters/<name>/aliases/canary first"
            raise NotFoundError(text, param="alias")
        if expected is not None and expected != record.revision:
            text = f"the canary moved meanwhile (it is at revision {record.revision}, not {expected})"
            raise AliasConflict(f"{text}: look at it again and decide anew", param="If-Match")
        return record

    def _decided(self, decision: Decision, record: AliasRecord, reason: str) -> dict[str, Any]:
        self._gateway.metrics.canary_decisions.labels(decision).inc()
        return {"decision": decision, "version": record.version, "reason": reason, "canary": None}


async def ended(gateway: Gateway, name: str, alias: str, reason: str, expected: int | None) -> dict[str, Any]:
    """End an alias; ending the canary is a decision that counts. Raises as ``Adapters.end``."""
    body = await Adapters(gateway, name).end(alias, reason, expected)
    if alias == CANARY:
        gateway.metrics.canary_decisions.labels("rolled_back").inc()
    return body
