"""What came of jobs, as all that tell it say: the job itself, and what was corrected by it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from adapter_store.errors import StoreError
from adapter_store.jobs import Job
from adapter_store.versions import STABLE
from server.gateway import Gateway
from server.jobs.protocol import is_learned, job_body, job_outcome


async def shown(gateway: Gateway, *jobs: Job) -> list[dict[str, Any]]:
    """Return jobs as HTTP shows them."""
    promoted = await _promoted(gateway, jobs)
    return [job_body(job, gateway.model_name, promoted) for job in jobs]


async def shown_one(gateway: Gateway, job: Job) -> dict[str, Any]:
    """Return one job as HTTP shows it."""
    return (await shown(gateway, job))[0]


async def came_of(gateway: Gateway, job: Job) -> str:
    """Return what came of a job, see ``job_outcome``."""
    return job_outcome(job, await _promoted(gateway, [job]))


async def _promoted(gateway: Gateway, jobs: Sequence[Job]) -> frozenset[str]:
    """Return what ``stable`` names or has named, where that decides about one of the jobs.

    While the store cannot be read a job is told as it ended: to look at jobs must not depend on the store.
    """
    if all(job.result_version is None or is_learned(job) for job in jobs):
        return frozenset()
    try:
        return await asyncio.to_thread(gateway.store.aliases.named, STABLE)
    except (StoreError, OSError):
        return frozenset()
