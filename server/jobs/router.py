"""``/v1/jobs``: the jobs of ``/v1/fine_tuning/jobs`` by a shorter name, their events oldest first."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse

from server.event_stream import EventStream
from server.gateway import GatewayDep
from server.jobs.outcome import shown, shown_one
from server.jobs.protocol import event_body, list_body
from server.jobs.service import (
    cancel_job,
    checked_event_id,
    follow_events,
    get_job,
    list_checkpoints,
    list_events,
    list_jobs,
    metadata_wanted,
    sse,
)
from server.openapi import After, Limit, example

LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=100)]

JOB_EXAMPLE = {
    "id": "job-0193f2a4c0de1f2e3d4c5b6a7980",
    "object": "fine_tuning.job",
    "status": "running",
    "outcome": "running",
    "task": "digits",
    "phase": "train",
    "decision": "expand",
    "model": "strata",
    "fine_tuned_model": None,
    "created_at": 1732280000,
}
EVENT_EXAMPLE = {
    "id": "1732280001000-0",
    "object": "fine_tuning.job.event",
    "created_at": 1732280001,
    "level": "info",
    "type": "metrics",
    "message": "step 40/200, loss 0.412",
    "data": {"step": 40, "total_steps": 200, "loss": 0.412, "eta_seconds": 21.0},
}
_STREAM_EXAMPLE = sse(EVENT_EXAMPLE, event="metrics", event_id=str(EVENT_EXAMPLE["id"])).decode()
_EVENT_ORDER = (
    "`/v1/fine_tuning/jobs/{job_id}/events` lists the newest event first, as OpenAI does, and `after` goes "
    "on to older ones; `/v1/jobs/{job_id}/events` lists the oldest first, and `after` goes on to newer ones. "
    "As a stream, events come oldest first from either, behind `Last-Event-ID` (or `after`), until the job "
    "has ended."
)
CHECKPOINT_EXAMPLE = {
    "id": "ckpt-0193f2a4c0de1f2e3d4c5b6a7980",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1732280060,
    "fine_tuned_model_checkpoint": "strata@v3",
    "fine_tuning_job_id": "job-0193f2a4c0de1f2e3d4c5b6a7980",
    "metrics": {"step": 200, "train_loss": 0.031},
    "step_number": 200,
}

_METADATA = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "description": "metadata[key]=value: jobs that have all of these; metadata=null: jobs without any",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
    "example": {"owner": "ann"},
}


def job_routes(prefix: str, tag: str, *, newest_event_first: bool = False) -> APIRouter:
    """Return the routes that look at jobs, under ``prefix``; the order is that of the list of events."""
    router = APIRouter(prefix=prefix, tags=[tag])
    order = "newest" if newest_event_first else "oldest"

    @router.get(
        "",
        summary="List jobs, newest first",
        responses=example(list_body([JOB_EXAMPLE])),
        openapi_extra={"parameters": [_METADATA]},
    )
    async def list_all(
        request: Request, gateway: GatewayDep, limit: Limit = 20, after: After = None
    ) -> dict[str, Any]:
        wanted = metadata_wanted(request.query_params.multi_items())
        jobs, more = await list_jobs(gateway.link, limit, after, wanted)
        return list_body(await shown(gateway, *jobs), has_more=more)

    @router.get("/{job_id}", summary="Show a job", responses=example(JOB_EXAMPLE))
    async def show(job_id: str, gateway: GatewayDep) -> dict[str, Any]:
        """Answer with the job; ``outcome`` is its status until it succeeded, then what became of its version.

        ``learned``: it was served, be it only since somebody promoted it. ``held_back``: the gate kept it,
        ``gate.reasons`` say why. ``not_served``: it passed, but ``stable`` was moved while it was learned.
        """
        return await shown_one(gateway, await get_job(gateway.link, job_id))

    @router.post(
        "/{job_id}/cancel",
        summary="Cancel a job: at once if it waits, at the next step if it runs",
        responses=example({**JOB_EXAMPLE, "status": "cancelled", "outcome": "cancelled"}),
    )
    async def cancel(job_id: str, gateway: GatewayDep) -> dict[str, Any]:
        return await shown_one(gateway, await cancel_job(gateway.link, job_id))

    @router.get(
        "/{job_id}/events",
        summary=f"List a job's events, {order} first; follow them with Accept: text/event-stream",
        description=_EVENT_ORDER,
        responses=example(list_body([EVENT_EXAMPLE]), event_stream=_STREAM_EXAMPLE),
        response_model=None,
    )
    async def events(
        job_id: str,
        request: Request,
        gateway: GatewayDep,
        limit: Limit = 100,
        after: After = None,
        stream: Annotated[bool, Query()] = False,
        last_event_id: LastEventId = None,
    ) -> JSONResponse | EventStream:
        if stream or "text/event-stream" in request.headers.get("accept", ""):
            start = checked_event_id(last_event_id or after)
            await get_job(gateway.link, job_id)  # an unknown job is a 404, not an empty stream
            return EventStream(follow_events(gateway.link, job_id, start))
        found, more = await list_events(gateway.link, job_id, limit, after, newest_first=newest_event_first)
        return JSONResponse(list_body([event_body(event) for event in found], has_more=more))

    @router.get(
        "/{job_id}/checkpoints",
        summary="List what a job made: its version, once it succeeded",
        responses=example(list_body([CHECKPOINT_EXAMPLE])),
    )
    async def checkpoints(job_id: str, gateway: GatewayDep, after: After = None) -> dict[str, Any]:
        return await list_checkpoints(gateway.link, job_id, gateway.model_name, after)

    return router


router = job_routes("/v1/jobs", "jobs")
