"""From a chat request to a running generation, and from its chunks to OpenAI's bodies."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from adapter_store.errors import InputError
from adapter_store.rendering import Message, Role
from adapter_store.texts import join_parts
from server.auth import CALLER
from server.chat.asker import asker_of
from server.chat.protocol import ChatMessage, ChatRequest, ImagePart, choice_delta, usage_body
from server.engine import Chunk, Sampling, TokenLogprob
from server.gateway import Gateway, Limits
from server.generation import Answer, Generation, generation
from server.logs import log

_MAX_STOP_CHARS = 256
_FILE_LIST = re.compile(r"\A<attached_files>\n(?:<file [^\n]*/>\n)+</attached_files>\s*")
"""How Open WebUI begins a question with a picture: names and ids of files, for tools that nobody has here.

Read as part of the question it moves the question away from the task that was taught (decision 45).
"""
_ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


@asynccontextmanager
async def open_chat(gateway: Gateway, chat: ChatRequest) -> AsyncIterator[Generation]:
    """Check the request, then load its pictures and run the generation inside the block.

    Raises:
        InputError: a field is out of bounds, a picture is unusable, or there is nothing to answer.
        UnknownModel: no such model or version; no picture was fetched.
        NotReady: the server is still starting.
    """
    serving = gateway.ready()
    sampling = sampling_of(chat, gateway.limits, serving.max_model_len)
    messages, urls = turns_of(chat.messages, gateway.limits)
    await serving.live.resolve(chat.model)
    ignored = chat.ignored_fields()
    if ignored:
        log("fields of a chat request have no effect here", fields_ignored=ignored)
    async with (
        gateway.pictures.fetched(urls) as files,
        generation(
            serving,
            gateway.metrics,
            model=chat.model,
            messages=messages,
            images=gateway.pictures.decoded_once(files),
            sampling=sampling,
            choices=chat.n or 1,
            asker=lambda: asker_of(chat, CALLER.get()),
        ) as running,
    ):
        yield running


def sampling_of(chat: ChatRequest, limits: Limits, max_model_len: int) -> Sampling:
    """Return how to pick tokens; greedy by default. Raise InputError out of bounds."""
    if (chat.n or 1) > limits.max_choices:
        raise InputError(f"n is {chat.n}; at most {limits.max_choices} answers are given at once", param="n")
    if (chat.top_logprobs or 0) > limits.max_logprobs:
        text = f"top_logprobs is {chat.top_logprobs}; at most {limits.max_logprobs} are given"
        raise InputError(text, param="top_logprobs")
    if chat.top_logprobs and not chat.logprobs:
        raise InputError("top_logprobs needs logprobs: true", param="top_logprobs")
    wanted = chat.max_completion_tokens or chat.max_tokens
    return Sampling(
        max_tokens=wanted or min(limits.default_max_tokens, max_model_len),
        temperature=chat.temperature or 0.0,
        top_p=1.0 if chat.top_p is None else chat.top_p,
        stop=_stops(chat.stop, limits.max_stop),
        seed=None if chat.seed is None else chat.seed % 2**63,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        frequency_penalty=chat.frequency_penalty or 0.0,
        presence_penalty=chat.presence_penalty or 0.0,
    )


def _stops(stop: str | list[str] | None, most: int) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > most:
        raise InputError(
            f"{len(stops)} stop strings were given; at most {most} are watched for", param="stop"
        )
    if any(not text or len(text) > _MAX_STOP_CHARS for text in stops):
        raise InputError(f"a stop string has 1 to {_MAX_STOP_CHARS} characters", param="stop")
    return stops


def turns_of(messages: list[ChatMessage], limits: Limits) -> tuple[tuple[Message, ...], list[str]]:
    """Return the turns for the renderer and the URLs of their pictures in order.

    Raises:
        InputError: too many turns or pictures, a picture outside a user turn, or nothing asked.
    """
    if len(messages) > limits.max_messages:
        text = f"{len(messages)} messages were given; at most {limits.max_messages} are read"
        raise InputError(text, param="messages")
    turns: list[Message] = []
    urls: list[str] = []
    for place, message in enumerate(messages):
        parts = message.content if isinstance(message.content, list) else []
        found = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
        if found and message.role != "user":
            text = f"messages.{place} is of role {message.role}: only user messages carry pictures"
            raise InputError(text, param=f"messages.{place}.content")
        text = _text(message)
        if message.role == "user":
            text = _FILE_LIST.sub("", text)
        turns.append(Message(role=_ROLES[message.role], text=text, images=len(found)))
        urls += found
    if len(urls) > limits.max_images:
        raise InputError(
            f"{len(urls)} pictures were given; at most {limits.max_images} are read", param="messages"
        )
    if not any(turn.role == "user" and (turn.text.strip() or turn.images) for turn in turns):
        raise InputError("nothing is asked: no user message has text or a picture", param="messages")
    return tuple(turns), urls


def _text(message: ChatMessage) -> str:
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    return join_parts(part.text for part in message.content if not isinstance(part, ImagePart))


def head_of(chat: ChatRequest, running: Generation) -> dict[str, Any]:
    """Return what every body of one answer begins with."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": chat.model,
        "system_fingerprint": running.leased.version,
    }


def completion_body(head: dict[str, Any], running: Generation, answers: list[Answer]) -> dict[str, Any]:
    """Return a whole answer."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": logprobs_body(token for chunk in answer.chunks for token in chunk.logprobs or ())
            if any(chunk.logprobs is not None for chunk in answer.chunks)
            else None,
            "finish_reason": answer.finish_reason,
        }
        for index, answer in enumerate(answers)
    ]
    cached = max((chunk.cached_tokens for answer in answers for chunk in answer.chunks), default=0)
    usage = usage_body(running.prompt_tokens, sum(answer.completion_tokens for answer in answers), cached)
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage}


def chunk_choices(index: int, chunk: Chunk) -> list[dict[str, Any]]:
    """Return the choices to stream for one chunk: its text, then its end, each in a body of its own."""
    found = []
    logprobs = None if chunk.logprobs is None else logprobs_body(chunk.logprobs)
    if chunk.text or (chunk.logprobs and not chunk.finish_reason):
        found.append(choice_delta(index, {"content": chunk.text}, logprobs=logprobs))
        logprobs = None
    if chunk.finish_reason:
        left = logprobs if logprobs and logprobs["content"] else None
        found.append(choice_delta(index, {}, chunk.finish_reason, left))
    return found


def logprobs_body(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return log probabilities in OpenAI's shape."""
    content = [
        {
            "token": token.token,
            "logprob": token.logprob,
            "bytes": list(token.bytes),
            "top_logprobs": [
                {"token": top.token, "logprob": top.logprob, "bytes": list(top.bytes)} for top in token.top
            ],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}
