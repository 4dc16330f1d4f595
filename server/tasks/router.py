"""``/v1/tasks/{task}``: teach a task with one call to ``batches``, or import one to ``lora``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request

from server.gateway import GatewayDep
from server.jobs.outcome import shown_one
from server.jobs.router import JOB_EXAMPLE
from server.openapi import PICTURE_EXAMPLE, body_example, example, form_example, merged
from server.tasks.importing import submit_lora
from server.tasks.service import submit_batch

router = APIRouter(prefix="/v1/tasks", tags=["teach"])

_BODY = {
    "examples": [{"image": PICTURE_EXAMPLE, "question": "Which digit is it?", "answer": "seven"}],
    "hyperparameters": {"n_epochs": 4},
}


@router.post(
    "/{task}/batches",
    status_code=202,
    summary="Teach a task: examples as JSON, or a data set file as a form",
    responses=example({**JOB_EXAMPLE, "status": "queued", "outcome": "queued"}, status=202),
    openapi_extra=merged(
        body_example(_BODY), form_example(file="binary", question="What is shown?", n_epochs="4")
    ),
)
async def create(
    task: str,
    request: Request,
    gateway: GatewayDep,
    idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> dict[str, Any]:
    """Answer 202 with the job once the data is on disk and the job in the queue.

    An ``Idempotency-Key`` makes it safe to repeat. Faulty data is a 400 whose ``error.report`` lists all.
    ``question`` beside a file is asked where the data has none, as in one subfolder of pictures per answer.
    """
    return await shown_one(gateway, await submit_batch(gateway, task, request, idempotency_key))


@router.post(
    "/{task}/lora",
    status_code=202,
    summary="Import a PEFT LoRA as a new task, measured on a data set",
    responses=example(
        {**JOB_EXAMPLE, "status": "queued", "outcome": "queued", "adapter": "lora-9f86d081..."}, status=202
    ),
    openapi_extra=form_example(adapter="binary", file="binary"),
)
async def import_lora(
    task: str,
    request: Request,
    gateway: GatewayDep,
    idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> dict[str, Any]:
    """Answer 202 with the job once LoRA and data are on disk and the job in the queue.

    ``adapter`` is a zip of the LoRA's folder; the questions and pictures of ``file`` place the task's keys
    and measure it. A LoRA that does not fit is a 400 whose ``error.report`` lists every fault.
    """
    return await shown_one(gateway, await submit_lora(gateway, task, request, idempotency_key))
