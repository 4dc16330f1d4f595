"""``/v1/fine_tuning/jobs``: create, list, show, cancel, events, checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header

from server.fine_tuning.protocol import CreateJob
from server.fine_tuning.service import create_job
from server.gateway import GatewayDep
from server.jobs.outcome import shown_one
from server.jobs.router import JOB_EXAMPLE, job_routes
from server.openapi import example

router = job_routes("/v1/fine_tuning/jobs", "fine-tuning", newest_event_first=True)


@router.post("", summary="Create a job that learns an uploaded file", responses=example(JOB_EXAMPLE))
async def create(
    wanted: CreateJob,
    gateway: GatewayDep,
    idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> dict[str, Any]:
    """Validate the file (every fault at once), keep its data and queue the job.

    ``metadata.task`` names the task, a new or a known one. Without it the service chooses by the questions
    and pictures: it trains the known task that they are most like, or opens a new one, ``task-2``; ``task``
    of the job tells which, once that is decided. ``suffix`` is kept with the job and names no task.
    """
    return await shown_one(gateway, await create_job(gateway, wanted, idempotency_key))
