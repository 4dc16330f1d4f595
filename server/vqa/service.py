"""Read a question from a form or JSON and answer it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from adapter_store.errors import InputError
from adapter_store.rendering import Message
from server.auth import CALLER
from server.canary.draw import asker_key
from server.chat.protocol import usage_body
from server.engine import Sampling
from server.gateway import Gateway
from server.generation import generation
from server.tasks.service import read_json
from server.uploads import form_number, is_multipart, received_form

_EXAMPLE = '{"question": "Which digit is it?", "image": "data:image/png;base64,..."}'


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, its picture (a file or a URL) if it has one, and who shall answer."""

    question: str
    image: bytes | str | None
    model: str
    max_tokens: int | None


async def read_question(gateway: Gateway, request: Request) -> Asked:
    """Read the request; raise InputError if the question or picture cannot be used."""
    if is_multipart(request):
        async with received_form(request, gateway.uploads, asyncio.to_thread) as form:
            image: bytes | str | None = form.fields.get("image") or None
            if "image" in form.files:
                image = await asyncio.to_thread(form.files["image"].read_picture)
            tokens = form_number(form.fields, "max_tokens", int)
            return check_question(
                gateway, form.fields.get("question"), image, form.fields.get("model"), tokens
            )
    body = await read_json(request, asyncio.to_thread, _EXAMPLE)
    url = body.get("image")
    if url is not None and not isinstance(url, str):
        raise InputError("image must be a data: URL", param="image")
    return check_question(
        gateway, body.get("question"), url or None, body.get("model"), body.get("max_tokens")
    )


def check_question(
    gateway: Gateway, question: Any, image: bytes | str | None, model: Any, max_tokens: Any
) -> Asked:
    """Return the question with its defaults; raise InputError for a field that cannot be used."""
    if not isinstance(question, str) or not question.strip():
        raise InputError("the question is missing; send it as the field 'question'", param="question")
    if model is not None and not isinstance(model, str):
        raise InputError("model must be text", param="model")
    if max_tokens is not None and (
        isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1
    ):
        raise InputError("max_tokens must be a whole number of at least 1", param="max_tokens")
    return Asked(question, image, model or gateway.model_name, max_tokens)


async def answer(gateway: Gateway, asked: Asked) -> dict[str, Any]:
    """Return the answer with the version that gave it."""
    serving = gateway.ready()
    started = time.perf_counter()
    images = () if asked.image is None else (asked.image,)
    wanted = asked.max_tokens or min(gateway.limits.default_max_tokens, serving.max_model_len)
    await serving.live.resolve(asked.model)
    async with (
        gateway.pictures.fetched(images) as files,
        generation(
            serving,
            gateway.metrics,
            model=asked.model,
            messages=(Message(role="user", text=asked.question, images=len(images)),),
            images=gateway.pictures.decoded_once(files),
            sampling=Sampling(max_tokens=wanted),
            asker=lambda: asker_key("question", CALLER.get(), asked.question, asked.image or b""),
        ) as running,
    ):
        given = (await running.finish())[0]
        return {
            "answer": given.text.strip(),
            "version": running.leased.version,
            "model": asked.model,
            "task": running.prepared.task,
            "finish_reason": given.finish_reason,
            "seconds": round(time.perf_counter() - started, 4),
            "usage": usage_body(running.prompt_tokens, given.completion_tokens),
        }
