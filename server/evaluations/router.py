"""``GET /v1/evaluations/matrix``: what every stage kept and lost."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse

from adapter_store.matrix import AccuracyMatrix
from adapter_store.names import BASE_VERSION, check_version_id
from adapter_store.versions import STABLE, Manifest, comparable_since
from server.gateway import Gateway, GatewayDep
from server.openapi import example

router = APIRouter(prefix="/v1/evaluations", tags=["evaluate"])

_MATRIX = {
    "version": "v2",
    "tasks": ["digits", "animals"],
    "base": [0.11, 0.2],
    "rows": [[0.97, None], [0.96, 0.94]],
    "trained": ["digits", "animals"],
    "average_accuracy": 0.95,
    "mean_average_accuracy": 0.96,
    "forgetting": 0.01,
    "backward_transfer": -0.01,
    "new_task_accuracy": 0.955,
    "routing_leak": {"digits": 0.0, "animals": 0.01},
    "zero_shot_retention": 0.99,
}


@router.get(
    "/matrix",
    summary="The accuracy matrix of a version, as JSON or CSV (format=csv or Accept: text/csv)",
    responses=example(_MATRIX, csv="stage,trained,digits\nbase,,0.11\n1,digits,0.97\n"),
    response_model=None,
)
async def matrix(
    request: Request,
    gateway: GatewayDep,
    version: Annotated[str | None, Query(max_length=20)] = None,
    form: Annotated[Literal["json", "csv"] | None, Query(alias="format")] = None,
) -> dict[str, Any] | PlainTextResponse:
    """Return R with the base's row, average accuracy, forgetting, backward transfer and routing leak.

    Without ``version`` that of ``stable``.
    """
    manifest = await asyncio.to_thread(_manifest, gateway, version)
    table = manifest.accuracy if manifest else AccuracyMatrix.empty()
    if form == "csv" or (form is None and "text/csv" in request.headers.get("accept", "")):
        return PlainTextResponse(table.to_csv(), media_type="text/csv")
    since = comparable_since(manifest.splits) if manifest else {}
    forgotten = {task: table.forgetting_of(task, since) for task in table.tasks}
    return {
        "version": manifest.version if manifest else BASE_VERSION,
        **table.model_dump(mode="json"),
        **table.summary(since),
        "forgetting_by_task": forgotten,
        "routing_leak": manifest.routing_leak if manifest else {},
        "zero_shot_retention": manifest.zero_shot_retention if manifest else None,
        "gate": manifest.gate.model_dump() if manifest and manifest.gate else None,
    }


def _manifest(gateway: Gateway, version: str | None) -> Manifest | None:
    """Return the manifest asked for, or None for the base, which has learned nothing."""
    if version is None:
        record = gateway.store.aliases.get(STABLE)
        version = record.version if record else BASE_VERSION
    return None if check_version_id(version) == BASE_VERSION else gateway.store.manifest(version)
