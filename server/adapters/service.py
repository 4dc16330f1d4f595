"""Read versions and move aliases of one lineage."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from adapter_store.errors import ConflictError, InputError, NotFoundError
from adapter_store.names import BASE_VERSION, check_alias_name, check_version_id
from adapter_store.versions import STABLE, AliasRecord, Manifest
from server.gateway import Gateway

_ETAG = re.compile(r'(?:W/)?"(\d{1,12})"')
_ACTOR = "http"


class Adapters:
    """The versions and aliases of the lineage ``name``."""

    def __init__(self, gateway: Gateway, name: str) -> None:
        if name != gateway.model_name:
            text = f"there are no adapters named {name[:80]!r}; there are those of {gateway.model_name!r}"
            raise NotFoundError(text, param="name")
        self._gateway = gateway
        self._store = gateway.store

    async def versions(self, limit: int | None = None) -> dict[str, Any]:
        """Return every version or the newest ``limit``, oldest first, with their aliases."""
        manifests = await asyncio.to_thread(self._store.list)
        has_more = limit is not None and len(manifests) > limit
        manifests = manifests[-limit:] if limit else manifests
        records = (await self.aliases())["data"]
        promoted = await self._promoted()
        named = [self._version_body(manifest, records, promoted) for manifest in manifests]
        return {"object": "list", "data": named, "aliases": records, "has_more": has_more}

    async def version(self, version: str) -> dict[str, Any]:
        """Return one manifest; raise NotFoundError."""
        check_version_id(version)
        manifest = await asyncio.to_thread(self._store.manifest, version)
        return self._version_body(manifest, (await self.aliases())["data"], await self._promoted())

    async def aliases(self) -> dict[str, Any]:
        """Return every alias; ``stable`` is always among them."""
        found = await asyncio.to_thread(self._store.aliases.all)
        bodies = [self._alias_body(record) for _, record in sorted(found.items())]
        if STABLE not in found:
            bodies.insert(0, self._untaught())
        return {"object": "list", "data": bodies, "has_more": False}

    async def alias(self, alias: str) -> dict[str, Any]:
        """Return one alias; raise NotFoundError."""
        check_alias_name(alias)
        record = await asyncio.to_thread(self._store.aliases.get, alias)
        if record is not None:
            return self._alias_body(record)
        if alias == STABLE:
            return self._untaught()
        raise NotFoundError(
            f"there is no alias {alias!r}; GET /v1/adapters/<name>/aliases lists them", param="alias"
        )

    async def history(self, alias: str) -> dict[str, Any]:
        """Return every move of an alias, oldest first; that of an alias which has ended stays."""
        check_alias_name(alias)
        records = await asyncio.to_thread(self._store.aliases.history, alias)
        if not records:
            await self.alias(alias)
        return {"object": "list", "data": [record.model_dump() for record in records], "has_more": False}

    async def move(
        self, alias: str, version: str, reason: str, expected: int | None, weight: float | None = None
    ) -> dict[str, Any]:
        """Move an alias by compare-and-set; canary and shadow take ``weight`` of the requests.

        Raises:
            AliasConflict: it moved since ``expected`` was read.
            ConflictError: the version is one that this gateway refuses to serve.
            NotFoundError: no such version.
        """
        check_alias_name(alias)
        check_version_id(version)
        await self._check_servable(version)
        record = await asyncio.to_thread(
            self._store.aliases.move,
            alias,
            version,
            expected_revision=expected,
            reason=reason,
            actor=_ACTOR,
            weight=weight,
        )
        return await self._moved(record)

    async def end(self, alias: str, reason: str, expected: int | None) -> dict[str, Any]:
        """Let an alias name nothing from here on; return the record that says so.

        Raises:
            AliasConflict: it moved since ``expected`` was read.
            NotFoundError: there is no such alias.
            InputError: ``stable`` cannot end.
        """
        check_alias_name(alias)
        record = await asyncio.to_thread(
            self._store.aliases.end, alias, expected_revision=expected, reason=reason, actor=_ACTOR
        )
        self._look_now()
        return self._alias_body(record)

    async def roll_back(self, alias: str, reason: str, expected: int | None) -> dict[str, Any]:
        """Move an alias to the version before; raises as ``move``."""
        check_alias_name(alias)
        record = await asyncio.to_thread(
            self._store.aliases.rollback, alias, expected_revision=expected, reason=reason, actor=_ACTOR
        )
        return await self._moved(record)

    async def _check_servable(self, version: str) -> None:
        serving = self._gateway.serving
        reason = await serving.live.why_refused(version) if serving else None
        if reason is not None:
            raise ConflictError(f"version {version} is not served: {reason}", param="version")

    async def _moved(self, record: AliasRecord) -> dict[str, Any]:
        """Return the alias, with a ``warning`` of what the version that it names now lacks."""
        if record.alias == STABLE:
            await asyncio.to_thread(self._store.aliases.remember_previous)
        self._look_now()
        body = self._alias_body(record)
        warnings = await asyncio.to_thread(self._warnings, record)
        return body | ({"warning": "; ".join(warnings)} if warnings else {})

    def _warnings(self, record: AliasRecord) -> list[str]:
        """Say why the gate held a version back, and which tasks ``stable`` knew until now."""
        now = self._manifest(record.version)
        warnings: list[str] = []
        if now is not None and now.gate is not None and not now.gate.passed:
            why = "; ".join(now.gate.reasons) or "no reason was recorded"
            warnings.append(f"the gate held {record.version} back: {why}")
        if record.alias == STABLE and record.revision > 1:
            left = self._store.aliases.history(STABLE)[record.revision - 2].version
            before = self._manifest(left)
            known = set(now.tasks) if now else set()
            lost = [task for task in (before.tasks if before else ()) if task not in known]
            if lost:
                warnings.append(f"{record.version} does not know {', '.join(lost)}, which {left} does")
        return warnings

    def _manifest(self, version: str) -> Manifest | None:
        return None if version == BASE_VERSION else self._store.manifest(version)

    def _look_now(self) -> None:
        if self._gateway.serving is not None:
            self._gateway.serving.live.look_now()

    def _alias_body(self, record: AliasRecord) -> dict[str, Any]:
        body = record.model_dump()
        serving = self._gateway.serving
        if record.alias == STABLE and serving is not None:
            body["served"] = serving.live.served
        return body

    def _untaught(self) -> dict[str, Any]:
        reason = "nothing was learned yet"
        record = AliasRecord(
            alias=STABLE, version=BASE_VERSION, revision=0, moved_at=0.0, reason=reason, actor="-"
        )
        return self._alias_body(record)

    async def _promoted(self) -> frozenset[str]:
        return await asyncio.to_thread(self._store.aliases.named, STABLE)

    @staticmethod
    def _version_body(
        manifest: Manifest, aliases: list[dict[str, Any]], promoted: frozenset[str]
    ) -> dict[str, Any]:
        named = [record["alias"] for record in aliases if record["version"] == manifest.version]
        return {
            **manifest.model_dump(mode="json"),
            "object": "adapter.version",
            "aliases": named,
            "promoted": manifest.version in promoted,
        }


def etag(record: dict[str, Any]) -> str:
    """Return the ETag of an alias: its revision."""
    return f'"{record["revision"]}"'


def expected_revision(if_match: str | None, if_none_match: str | None) -> int | None:
    """Return the revision that the headers ask for: None for any, 0 for an alias that must not exist.

    Raises:
        InputError: a header is no ETag of an alias.
    """
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise InputError(
                "If-None-Match takes * here, and not together with If-Match", param="If-None-Match"
            )
        return 0
    if if_match is None or if_match.strip() == "*":
        return None
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise InputError('If-Match takes the ETag of the alias, as in If-Match: "3"', param="If-Match")
    return int(found.group(1))
