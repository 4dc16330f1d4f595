"""``POST /v1/tasks/{task}/batches``: teach a new or known task with one call."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request

from server.gateway import GatewayDep
from server.jobs.protocol import job_body
from server.jobs.router import JOB_EXAMPLE
from server.openapi import body_example, example, form_example, merged
from server.tasks.service import submit_batch

router = APIRouter(prefix="/v1/tasks", tags=["teach"])

_BODY = {
    "examples": [
        {"image": "data:image/png;base64,iVBORw0KGgo...", "question": "Which digit is it?", "answer": "seven"}
    ],
    "hyperparameters": {"n_epochs": 4},
}


@router.post(
    "/{task}/batches",
    status_code=202,
    summary="Teach a task: examples as JSON, or a data set file as a form",
    responses=example({**JOB_EXAMPLE, "status": "queued"}, status=202),
    openapi_extra=merged(body_example(_BODY), form_example(file="binary", n_epochs="4")),
)
async def create(
    task: str,
    request: Request,
    gateway: GatewayDep,
    idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> dict[str, Any]:
    """Answer 202 with the job once the data is on disk and the job in the queue.

    An ``Idempotency-Key`` makes it safe to repeat. Faulty data is a 400 whose ``error.report`` lists all.
    """
    return job_body(await submit_batch(gateway, task, request, idempotency_key), gateway.model_name)
