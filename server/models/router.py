"""``/v1/models``: every name that can be asked."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from adapter_store.names import BASE_VERSION
from adapter_store.versions import STABLE
from server.adaptation import UnknownModel
from server.gateway import Gateway, GatewayDep
from server.openapi import example

router = APIRouter(prefix="/v1/models", tags=["ask"])

_RECENT = 20
_MODEL = {
    "id": "strata",
    "object": "model",
    "created": 1732280000,
    "owned_by": "strata",
    "root": "v3",
    "parent": "v2",
    "max_model_len": 2048,
}


@router.get(
    "",
    summary="List models: the stable one first, then the base, aliases and recent versions",
    responses=example({"object": "list", "data": [_MODEL]}),
)
async def list_models(gateway: GatewayDep) -> dict[str, Any]:
    """Return the names that ``model`` of a request may hold."""
    return {"object": "list", "data": await asyncio.to_thread(models, gateway)}


@router.get("/{model:path}", summary="Show a model", responses=example(_MODEL))
async def show(model: str, gateway: GatewayDep) -> dict[str, Any]:
    """Return one model; any existing version can be named, not only the listed ones."""
    found = await asyncio.to_thread(models, gateway, None)
    for body in found:
        if model == body["id"]:
            return body
    raise UnknownModel.among(model, [body["id"] for body in found])


def models(gateway: Gateway, recent: int | None = _RECENT) -> list[dict[str, Any]]:
    """Return every model name with what it stands for; ``recent`` bounds the versions."""
    name = gateway.model_name
    manifests = {manifest.version: manifest for manifest in gateway.store.list()}
    aliases = {alias: record.version for alias, record in gateway.store.aliases.all().items()}
    length = gateway.serving.max_model_len if gateway.serving else None
    base_id = gateway.serving.base_id if gateway.serving else BASE_VERSION

    def body(identity: str, version: str) -> dict[str, Any]:
        manifest = manifests.get(version)
        return {
            "id": identity,
            "object": "model",
            "created": int(manifest.created_at) if manifest else 0,
            "owned_by": "strata",
            "root": version if manifest else base_id,
            "parent": manifest.parent if manifest else None,
            "max_model_len": length,
        }

    stable = aliases.get(STABLE, BASE_VERSION)
    listed = [
        body(name, stable),
        body(f"{name}@{STABLE}", stable),
        body(f"{name}@{BASE_VERSION}", BASE_VERSION),
    ]
    listed += [
        body(f"{name}@{alias}", version) for alias, version in sorted(aliases.items()) if alias != STABLE
    ]
    newest = list(reversed(manifests))[:recent]
    return listed + [body(f"{name}@{version}", version) for version in newest]
