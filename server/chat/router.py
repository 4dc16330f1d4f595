"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.chat.protocol import ChatRequest
from server.chat.service import completion_body, head_of, open_chat
from server.chat.stream import stream_chat
from server.disconnect import while_connected
from server.gateway import Gateway, GatewayDep
from server.openapi import example

router = APIRouter(prefix="/v1/chat", tags=["ask"])

_ANSWER = {
    "id": "chatcmpl-0f8c",
    "object": "chat.completion",
    "created": 1732280000,
    "model": "strata",
    "system_fingerprint": "v3",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "seven"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 52, "completion_tokens": 2, "total_tokens": 54},
}
_STREAM = """\
data: {"id": "chatcmpl-0f8c", "object": "chat.completion.chunk", "created": 1732280000, "model": "strata", \
"system_fingerprint": "v3", "choices": [{"index": 0, "delta": {"content": "seven"}, "finish_reason": null}]}

data: [DONE]

"""


@router.post(
    "/completions",
    summary="Answer a conversation with pictures, at once or as a stream",
    responses=example(_ANSWER, event_stream=_STREAM),
    response_model=None,
)
async def complete(chat: ChatRequest, request: Request, gateway: GatewayDep) -> Response:
    """Answer with the version that ``model`` names; it is in ``system_fingerprint`` too."""
    work = stream_chat(gateway, chat) if chat.stream else _answer(gateway, chat)
    response = await while_connected(request, work)
    ignored = chat.ignored_fields()
    if ignored:
        response.headers["x-strata-warning"] = f"ignored fields: {', '.join(ignored)}"[:400]
    return response


async def _answer(gateway: Gateway, chat: ChatRequest) -> Response:
    async with open_chat(gateway, chat) as running:
        answers = await running.finish()
        body: dict[str, Any] = completion_body(head_of(chat, running), running, answers)
        return JSONResponse(body, headers={"x-adapter-version": running.leased.version})
