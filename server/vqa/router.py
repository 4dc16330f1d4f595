"""``POST /v1/vqa``: one question about one picture, in one line of curl."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.disconnect import while_connected
from server.gateway import GatewayDep
from server.openapi import PICTURE_EXAMPLE, body_example, example, form_example, merged
from server.vqa.service import Asked, answer, read_question

router = APIRouter(prefix="/v1", tags=["ask"])

_ANSWER = {
    "answer": "seven",
    "version": "v3",
    "model": "strata",
    "task": "digits",
    "finish_reason": "stop",
    "seconds": 0.21,
    "usage": {"prompt_tokens": 52, "completion_tokens": 2, "total_tokens": 54},
}
_BODY = {"image": PICTURE_EXAMPLE, "question": "Which digit is it?"}


@router.post(
    "/vqa",
    summary="Ask one question about one picture (curl -F image=@p.png -F question=...)",
    responses=example(_ANSWER),
    openapi_extra=merged(form_example(image="binary", question="Which digit is it?"), body_example(_BODY)),
)
async def ask(request: Request, gateway: GatewayDep) -> JSONResponse:
    """Answer greedily; ``version`` is what answered, ``task`` whose increments weighed most."""
    asked: Asked = await read_question(gateway, request)
    body: dict[str, Any] = await while_connected(request, answer(gateway, asked))
    return JSONResponse(body, headers={"x-adapter-version": body["version"]})
