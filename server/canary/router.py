"""``/v1/adapters/{name}/canary``: look at canary and shadow, promote, roll back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse

from server.adapters.router import IfMatch
from server.adapters.service import expected_revision
from server.canary.protocol import DECIDED_EXAMPLE, EXAMPLE, Decide
from server.canary.service import Canary
from server.gateway import GatewayDep
from server.openapi import example

router = APIRouter(prefix="/v1/adapters", tags=["operate"])

Decided = Annotated[Decide | None, Body(json_schema_extra={"example": {"reason": "looks good"}})]


@router.get(
    "/{name}/canary",
    summary="Show canary and shadow, what was seen of each version, and the rule that ends a canary",
    responses=example(EXAMPLE),
)
async def show(name: str, gateway: GatewayDep) -> JSONResponse:
    """Counts begin with the canary; ``reason`` says why a canary or shadow does not take its share."""
    body = await Canary(gateway, name).show()
    headers = {"etag": f'"{body["canary"]["revision"]}"'} if body["canary"] else {}
    return JSONResponse(body, headers=headers)


@router.post(
    "/{name}/canary:promote",
    summary="Serve the canary's version as stable; the canary ends",
    responses=example(DECIDED_EXAMPLE),
)
async def promote(
    name: str, gateway: GatewayDep, wanted: Decided = None, if_match: IfMatch = None
) -> dict[str, Any]:
    """404 without a canary; 409 if it moved since the ETag was read. ``stable`` is the alias as moved."""
    reason = (wanted or Decide()).reason
    return await Canary(gateway, name).promote(reason, expected_revision(if_match, None))


@router.post(
    "/{name}/canary:rollback",
    summary="End the canary; stable answers everything again",
    responses=example({**DECIDED_EXAMPLE, "decision": "rolled_back"}),
)
async def roll_back(
    name: str, gateway: GatewayDep, wanted: Decided = None, if_match: IfMatch = None
) -> dict[str, Any]:
    """404 without a canary; 409 if it moved since the ETag was read."""
    reason = (wanted or Decide()).reason
    return await Canary(gateway, name).roll_back(reason, expected_revision(if_match, None))
