"""``/v1/adapters``: immutable versions and their tasks as LoRAs, movable aliases, roll back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from server.adapters.lora import EXPORTED, exported_task, zip_response
from server.adapters.protocol import MoveAlias, RollBack
from server.adapters.service import Adapters, etag, expected_revision
from server.canary.service import ended
from server.gateway import GatewayDep
from server.openapi import example

router = APIRouter(prefix="/v1/adapters", tags=["operate"])

_RECORD = {
    "alias": "stable",
    "version": "v3",
    "revision": 4,
    "moved_at": 1732280000.0,
    "reason": "gate passed",
    "actor": "worker",
    "weight": None,
    "ended": False,
    "served": "v3",
}
_MOVE = {name: value for name, value in _RECORD.items() if name != "served"}
_VERSION = {
    "version": "v3",
    "parent": "v2",
    "task": "digits",
    "decision": "expand",
    "gate": {"passed": True, "reasons": []},
    "created_at": 1732280000.0,
    "aliases": ["stable"],
    "promoted": True,
}
IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=100)]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=100)]


@router.get(
    "",
    summary="List what is served here",
    responses=example({"object": "list", "data": [{"name": "strata"}]}),
)
async def list_names(gateway: GatewayDep) -> dict[str, Any]:
    """Return the one lineage of this deployment."""
    return {"object": "list", "data": [{"name": gateway.model_name, "object": "adapter"}], "has_more": False}


@router.get(
    "/{name}/versions",
    summary="List versions, oldest first, with the aliases",
    responses=example({"object": "list", "data": [_VERSION], "aliases": [_RECORD]}),
)
async def versions(
    name: str, gateway: GatewayDep, limit: Annotated[int | None, Query(ge=1, le=1000)] = None
) -> dict[str, Any]:
    """Return every complete version, or with ``limit`` the newest ones."""
    return await Adapters(gateway, name).versions(limit)


@router.get(
    "/{name}/versions/{version}", summary="Show a version's whole manifest", responses=example(_VERSION)
)
async def version(name: str, version: str, gateway: GatewayDep) -> dict[str, Any]:
    """Return where a version came from and what it measured."""
    return await Adapters(gateway, name).version(version)


@router.get(
    "/{name}/versions/{version}/lora",
    summary="Export a task of a version as a PEFT LoRA folder",
    response_class=Response,
    responses=EXPORTED,
)
async def lora(
    name: str,
    version: str,
    gateway: GatewayDep,
    task: Annotated[str, Query(max_length=63, examples=["digits"])],
) -> Response:
    """Answer a zip of the folder; its ``strata.json`` says where its outputs equal the version's."""
    return zip_response(await exported_task(gateway, name, version, task))


@router.get(
    "/{name}/aliases", summary="List aliases", responses=example({"object": "list", "data": [_RECORD]})
)
async def aliases(name: str, gateway: GatewayDep) -> dict[str, Any]:
    """Return what every alias names; ``stable`` names ``base`` until something was learned."""
    return await Adapters(gateway, name).aliases()


@router.get(
    "/{name}/aliases/{alias}", summary="Show an alias; its ETag is for If-Match", responses=example(_RECORD)
)
async def alias(name: str, alias: str, gateway: GatewayDep) -> JSONResponse:
    """Return one alias."""
    record = await Adapters(gateway, name).alias(alias)
    return JSONResponse(record, headers={"etag": etag(record)})


@router.get(
    "/{name}/aliases/{alias}/history",
    summary="List every move of an alias, oldest first",
    responses=example({"object": "list", "data": [_MOVE]}),
)
async def history(name: str, alias: str, gateway: GatewayDep) -> dict[str, Any]:
    """Return the history of one alias."""
    return await Adapters(gateway, name).history(alias)


@router.put(
    "/{name}/aliases/{alias}",
    summary="Point an alias at a version; If-Match makes it a compare-and-set",
    responses=example(_RECORD),
)
async def move(
    name: str,
    alias: str,
    wanted: MoveAlias,
    gateway: GatewayDep,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> JSONResponse:
    """Move the alias; 409 if it moved since the ETag was read. ``If-None-Match: *`` only creates.

    ``previous`` is refused (400): it names what ``stable`` left by its newest move, and is moved with it.
    ``warning`` is there if the gate held the version back, or if it does not know what ``stable`` knew.
    """
    expected = expected_revision(if_match, if_none_match)
    adapters = Adapters(gateway, name)
    record = await adapters.move(alias, wanted.version, wanted.reason, expected, wanted.weight)
    return JSONResponse(record, headers={"etag": etag(record)})


@router.delete(
    "/{name}/aliases/{alias}",
    summary="End an alias: a canary answers nothing more, a shadow is compared no longer",
    responses=example({**_RECORD, "alias": "canary", "ended": True}),
)
async def end(
    name: str,
    alias: str,
    gateway: GatewayDep,
    reason: Annotated[str, Query(min_length=1, max_length=500)] = "ended over HTTP",
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Return the record by which the alias ends; its history stays. ``stable`` cannot end."""
    return await ended(gateway, name, alias, reason, expected_revision(if_match, None))


@router.post("/{name}/rollback", summary="Point an alias at the version before", responses=example(_RECORD))
async def roll_back(
    name: str, wanted: RollBack, gateway: GatewayDep, if_match: IfMatch = None
) -> JSONResponse:
    """Move the alias back one step in its history."""
    record = await Adapters(gateway, name).roll_back(
        wanted.alias, wanted.reason, expected_revision(if_match, None)
    )
    return JSONResponse(record, headers={"etag": etag(record)})
