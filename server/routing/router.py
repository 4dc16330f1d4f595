"""``/v1/routing``: ``:explain`` which increments answer a question and why, ``:export`` them as a LoRA."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from server.adapters.lora import EXPORTED, zip_response
from server.gateway import GatewayDep
from server.openapi import PICTURE_EXAMPLE, body_example, example, form_example, merged
from server.routing.service import explained, exported
from server.vqa.service import check_question, read_question

router = APIRouter(prefix="/v1", tags=["ask"])

_EXPLAINED = {
    "model": "strata",
    "version": "v2",
    "routing": "text+image",
    "answered_by": "animals",
    "answered_by_base": False,
    "best_cosine": 0.81,
    "tau": 0.65,
    "tasks": {"digits": 0.31, "animals": 0.69},
    "contextual_share": 0.31,
    "increments": [
        {
            "row": 4,
            "task": "animals",
            "cosine": 0.81,
            "selected": True,
            "intrinsic": 0.25,
            "contextual": 0.0,
            "coefficient": 0.25,
        }
    ],
}
_BODY = {"image": PICTURE_EXAMPLE, "question": "Which animal is this?"}


@router.get(
    "/routing:explain",
    summary="Explain a routing; for pictures too large for a URL use POST",
    responses=example(_EXPLAINED),
)
async def explain_get(
    gateway: GatewayDep,
    question: Annotated[str, Query(min_length=1, max_length=20_000, examples=["Which animal is this?"])],
    model: Annotated[str | None, Query(max_length=200)] = None,
    image: Annotated[str | None, Query(description="data: URL, or an allowed http URL")] = None,
) -> dict[str, Any]:
    """Return the increments that would answer, their tasks, cosines, and both parts of each coefficient."""
    return await explained(gateway, check_question(gateway, question, image or None, model, None))


@router.post(
    "/routing:explain",
    summary="Explain a routing (body or form as of /v1/vqa)",
    responses=example(_EXPLAINED),
    openapi_extra=merged(form_example(image="binary", question="Which animal is this?"), body_example(_BODY)),
)
async def explain_post(request: Request, gateway: GatewayDep) -> dict[str, Any]:
    """Return the increments that would answer, their tasks, cosines, and both parts of each coefficient."""
    return await explained(gateway, await read_question(gateway, request))


@router.post(
    "/routing:export",
    summary="Export what answers a question as a PEFT LoRA (body or form as of /v1/vqa)",
    response_class=Response,
    responses=EXPORTED,
    openapi_extra=merged(form_example(image="binary", question="Which animal is this?"), body_example(_BODY)),
)
async def export(request: Request, gateway: GatewayDep) -> Response:
    """Answer a zip of the LoRA folder; 400 if the plain base answers the question."""
    return zip_response(await exported(gateway, await read_question(gateway, request)))
