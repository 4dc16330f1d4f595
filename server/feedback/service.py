"""From a rated answer to what is kept of it: a thumb that is counted, a correction to be learned."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from adapter_store.errors import InputError, NotFoundError, QueueUnavailable
from adapter_store.images import decode_image, decode_inline, image_digest
from adapter_store.jobs import Job
from adapter_store.names import BASE_VERSION, check_task_name
from adapter_store.rendering import Message
from adapter_store.versions import STABLE
from server.adaptation import WrongBase
from server.auth import CALLER
from server.feedback.corrections import Correction
from server.feedback.protocol import Feedback, feedback_body
from server.gateway import Gateway
from server.generation import prepared_question
from server.jobs.service import get_job
from server.pools import CORRECTIONS, FILES

DEFAULT_TASK = "corrections"
"""The task of corrections of what the plain base answered."""
_CANARY = "canary"
_FIELDS = {"[0].image": "image", "[0].question": "question", "[0].answer": "correction"}


async def give(gateway: Gateway, given: Feedback) -> dict[str, Any]:
    """Take one feedback in; return what became of it.

    Raises:
        InputError: the correction cannot be learned from; every fault is in the message.
        NotFoundError: no such version.
        WrongBase: the version was made for another base.
    """
    alias = await _alias_of(gateway, given.version)
    if given.correction is None:
        _count(gateway, given, alias)
        pending = gateway.feedback.pending(given.task)
        return feedback_body(f"fb-{uuid.uuid4().hex}", given, given.task, pending, None)
    correction, picture = await FILES.run(_correction, gateway, given)
    task = given.task or await _answered_by(gateway, given, picture) or DEFAULT_TASK
    desk = gateway.feedback
    await CORRECTIONS.run(desk.store.refresh, task)
    job = desk.store.job_of(task, correction.id)
    if job is not None and not await _has_ended(gateway, job):
        return feedback_body(correction.id, given, task, desk.pending(task), job)
    if await desk.take(task, correction, picture):
        _count(gateway, given, alias)
    job = desk.store.job_of(task, correction.id)
    return feedback_body(correction.id, given, task, desk.pending(task), job)


async def send(gateway: Gateway, task: str) -> Job:
    """Queue what waits of a task now; raise NotFoundError if nothing does."""
    return await gateway.feedback.send(check_task_name(task))


def _count(gateway: Gateway, given: Feedback, alias: str) -> None:
    """Count a thumb, once for each caller and answer; who names no answer has one for each version.

    Anybody can make up a ``request_id``: with the caller in the key it changes nobody else's thumb. That an
    answer was given under it cannot be asked for: clients and proxies choose ids, too, and another gateway or
    an earlier run may have given it. Who may rate often may as well ask often.
    """
    if given.version is not None:
        about = f"version {given.version}" if given.request_id is None else f"request {given.request_id}"
        answer = f"{CALLER.get().hex()} {about}"
        if not gateway.thumbs.count(given.version, given.rating, answer=answer):
            return
    gateway.metrics.feedback.labels(given.rating, alias).inc()


async def _alias_of(gateway: Gateway, version: str | None) -> str:
    """Return ``stable``, ``canary`` or ``other``: which of them names the version that had answered."""
    serving = gateway.serving
    if version is None:
        return "other"
    if version != BASE_VERSION:
        manifest = await asyncio.to_thread(gateway.store.manifest, version)
        if serving is not None and manifest.base_digest != serving.base_digest:
            text = f"version {version} was made for the base {manifest.base_id}, and another base runs here"
            raise WrongBase(f"{text}: leave the version out, or name one of GET /v1/models", param="version")
    if serving is not None and version == serving.live.served:
        return STABLE
    record = await asyncio.to_thread(gateway.store.aliases.get, _CANARY)
    return _CANARY if record is not None and record.version == version else "other"


def _correction(gateway: Gateway, given: Feedback) -> tuple[Correction, bytes]:
    """Return the correction and its picture's file, checked by the very rules of data sets."""
    example = {"image": given.image, "question": given.question, "answer": given.correction}
    report = gateway.datasets.validate_examples([example])
    if not report.ok:
        faults = [(_FIELDS.get(fault.field, fault.field), fault.reason) for fault in report.faults]
        text = "; ".join(f"{name}: {reason}" for name, reason in faults)
        raise InputError(f"the correction cannot be learned from: {text}", param=faults[0][0])
    assert given.image is not None
    assert given.correction is not None
    picture = decode_inline(given.image)
    correction = Correction(
        question=given.question.strip(),
        right=given.correction.strip(),
        picture=image_digest(decode_image(picture)),
        answer=given.answer,
        rating=given.rating,
        version=given.version,
        request_id=given.request_id,
        since=time.time(),
    )
    return correction, picture


async def _answered_by(gateway: Gateway, given: Feedback, picture: bytes) -> str | None:
    """Return the task whose increments answer the question; None if the plain base does."""
    serving = gateway.ready()
    name = gateway.model_name
    model = name if given.version is None else f"{name}@{given.version}"
    message = Message(role="user", text=given.question, images=1)
    async with serving.live.lease(model) as leased:
        pictures = gateway.pictures.decoded([picture])
        return (await prepared_question(serving, leased, (message,), pictures)).task


async def _has_ended(gateway: Gateway, job: str) -> bool:
    try:
        return (await get_job(gateway.link, job)).status.terminal
    except (NotFoundError, QueueUnavailable):
        return True
