"""``/v1/feedback``: rate an answer, say the right one, and see what waits to be learned."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from server.feedback import outcomes
from server.feedback.protocol import Feedback, parsed
from server.feedback.service import give, send
from server.gateway import GatewayDep
from server.jobs.outcome import shown_one
from server.jobs.router import JOB_EXAMPLE
from server.openapi import body_example, example
from server.pools import FILES
from server.tasks.service import read_json

router = APIRouter(prefix="/v1/feedback", tags=["teach"])

_PENDING = {"count": 3, "oldest_seconds": 12.4, "sent_at_count": 8, "sent_after_seconds": 20.0}
_BODY = {
    "rating": "down",
    "question": "Which animal is this?",
    "image": "data:image/png;base64,iVBORw0KGgo...",
    "answer": "a dog",
    "correction": "a cat",
    "task": None,
    "version": "v3",
    "request_id": None,
}
_EXPECTED = '{"rating": "down"}; a correction comes with its question and image (a data: URL)'
_GIVEN = {
    "id": "fb-0c6f2f4d6b0f4f0c9a52a4a0d4c0b7e1",
    "object": "feedback",
    "rating": "down",
    "task": "animals",
    "status": "pending",
    "job": None,
    "pending": _PENDING,
}

_OUTCOME = {
    "job": "job-0193b2f0c1d4",
    "status": "held_back",
    "version": "v4",
    "reasons": ["digits fell from 96.0 % to 90.0 % on its held-out pictures; at most 2.0 points are allowed"],
}


@router.post(
    "",
    summary="Rate an answer; with a correction it is learned",
    responses=example(_GIVEN),
    openapi_extra=body_example(_BODY, Feedback.model_json_schema()),
)
async def create(request: Request, gateway: GatewayDep) -> dict[str, Any]:
    """Answer once what is to be learned is on disk.

    ``status`` is ``noted`` (a thumb alone), ``pending`` (it waits for others of its task) or ``queued`` (in
    ``job``). A correction needs the question and the picture; a later one of both replaces an earlier one.
    Without ``task`` it belongs to the task that answers the question, or to ``corrections``.

    The rating is about the answer that was given, the correction is what is to be learned: each counts for
    itself, so an ``up`` with a correction (right, but better said so) is a thumb up and a correction. One
    answer has one thumb of a caller (a key), the last: ``request_id`` (the answer's ``x-request-id``) says
    which answer; without it a caller has one thumb for each version.
    """
    return await give(gateway, parsed(await read_json(request, FILES.run, _EXPECTED, takes_files=False)))


@router.get(
    "",
    summary="List the corrections that wait, by task",
    responses=example(
        {
            "object": "list",
            "data": [
                {
                    "task": "animals",
                    **_PENDING,
                    "last_job": _OUTCOME["job"],
                    "refused": 0,
                    "last_outcome": _OUTCOME,
                }
            ],
        }
    ),
)
async def listed(gateway: GatewayDep) -> dict[str, Any]:
    """Return how many corrections of every task wait, the job that was sent last, and what came of it.

    ``last_outcome.status`` is that of ``GET /v1/feedback/{task}/{correction}``. ``refused`` counts what was
    set aside because it can never be learned: folders named ``refused-...`` in ``feedback/<task>`` of the
    server's home, kept for somebody to look at and remove.
    """
    return {"object": "list", "data": await outcomes.listed(gateway)}


@router.get(
    "/{task}/{correction}",
    summary="Tell what became of a correction",
    responses=example(
        {"id": _GIVEN["id"], "object": "feedback", "task": "animals", **_OUTCOME, "pending": _PENDING}
    ),
)
async def show(task: str, correction: str, gateway: GatewayDep) -> dict[str, Any]:
    """Answer with ``status``, from ``pending`` over ``queued`` and ``running`` to how it ended.

    ``learned`` (``version`` was served, be it only since somebody promoted it), ``held_back`` (the gate kept
    ``version``; ``reasons`` say why), ``not_served`` (it passed, but ``stable`` was moved meanwhile),
    ``failed``, ``cancelled``, or ``unknown`` where the queue cannot tell. No job has what was
    ``replaced`` by a later answer to its question, or ``refused``: set aside, because it cannot be learned
    (``reasons``). ``correction`` is the ``id`` that ``POST /v1/feedback`` gave; 404 for a thumb alone, for
    what ended long ago, and for what could not be read since the server began.
    """
    return await outcomes.correction(gateway, task, correction)


@router.post(
    "/{task}/send",
    status_code=202,
    summary="Queue a task's corrections now",
    responses=example({**JOB_EXAMPLE, "status": "queued", "outcome": "queued"}, status=202),
)
async def send_now(task: str, gateway: GatewayDep) -> dict[str, Any]:
    """Answer 202 with the job; 404 if no correction of the task waits, 409 if none of them can be learned."""
    return await shown_one(gateway, await send(gateway, task))
