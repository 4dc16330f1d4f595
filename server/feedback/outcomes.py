"""What became of corrections: they wait, are in a job, ended without one, or it was learned or not."""

from __future__ import annotations

import asyncio
from typing import Any

from adapter_store.errors import NotFoundError, QueueUnavailable
from adapter_store.jobs import Job
from adapter_store.names import check_task_name
from server.feedback.fates import Fate
from server.gateway import Gateway
from server.jobs.outcome import came_of
from server.jobs.service import get_job
from server.pools import CORRECTIONS

_AWAY = "the job queue cannot be asked now; ask again later"
_FORGOTTEN = "the job is no longer known; GET /v1/adapters/<name>/versions lists what was learned"


async def outcome_of(gateway: Gateway, job: Job) -> dict[str, Any]:
    """Return what came of a job (``came_of``), the version that it made, and why that is not served."""
    status = await came_of(gateway, job)
    reasons = [job.error.message] if job.error else []
    if status == "held_back":
        reasons = [str(reason) for reason in (job.gate or {}).get("reasons", ())]
    elif status == "not_served":
        reasons = ["stable was moved while it was learned"]
    return {"job": job.id, "status": status, "version": job.result_version, "reasons": reasons}


async def correction(gateway: Gateway, task: str, identity: str) -> dict[str, Any]:
    """Return what became of one correction; raise NotFoundError if it is not known (any more)."""
    desk = gateway.feedback
    found = desk.store.found(check_task_name(task), identity)
    if found is None:  # another gateway of the home may have taken it in
        await CORRECTIONS.run(desk.store.refresh, task)
        found = desk.store.found(task, identity)
    if found is None:
        text = f"no correction {identity[:40]!r} of {task!r} waits or was given lately"
        raise NotFoundError(f"{text}; a thumb alone is not followed", param="correction")
    outcome = _without_job(found.fate) if found.job is None else await _outcome(gateway, found.job)
    return {"id": identity, "object": "feedback", "task": task, **outcome, "pending": desk.pending(task)}


def _without_job(fate: Fate | None) -> dict[str, Any]:
    status, reasons = ("pending", []) if fate is None else (fate.status, [fate.reason])
    return {"job": None, "status": status, "version": None, "reasons": reasons}


async def listed(gateway: Gateway) -> list[dict[str, Any]]:
    """Return every task that corrections wait for or were sent for, with what became of its last job."""

    async def with_outcome(item: dict[str, Any]) -> dict[str, Any]:
        job = item["last_job"]
        return {**item, "last_outcome": None if job is None else await _outcome(gateway, job)}

    return await asyncio.gather(*map(with_outcome, gateway.feedback.listed()))


async def _outcome(gateway: Gateway, job: str) -> dict[str, Any]:
    try:
        return await outcome_of(gateway, await get_job(gateway.link, job))
    except (NotFoundError, QueueUnavailable) as error:
        reason = _AWAY if isinstance(error, QueueUnavailable) else _FORGOTTEN
        return {"job": job, "status": "unknown", "version": None, "reasons": [reason]}
