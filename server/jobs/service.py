"""Look at jobs, cancel them and follow their events."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from adapter_store.errors import InputError, NotFoundError, QueueUnavailable, StrataError, UnavailableError
from adapter_store.jobs import Job, JobEvent, check_job_id
from adapter_store.jobs.queue import EVENT_ID
from server.errors import describe
from server.jobs.link import QueueLink
from server.jobs.protocol import checkpoint_body, event_body, list_body, metadata_of
from server.pools import QUEUE

_POLL_SECONDS = 0.25
_KEEP_ALIVE_SECONDS = 15.0
_EVENTS_AT_ONCE = 100
_JOBS_AT_ONCE = 200
_METADATA_KEY = re.compile(r"metadata\[([^\[\]]+)\]")


async def get_job(link: QueueLink, job_id: str) -> Job:
    """Return a job; from the journal while Redis is away, or does not know yet again what it lost."""
    _check(job_id)
    try:
        return await QUEUE.run(lambda: link.queue().get(job_id))
    except (QueueUnavailable, NotFoundError):
        kept = await QUEUE.run(link.journal.get, job_id)
        if kept is None:
            raise
        return kept


async def list_jobs(
    link: QueueLink, limit: int, after: str | None, metadata: Mapping[str, str] | None = None
) -> tuple[list[Job], bool]:
    """Return jobs, newest first, and whether there are more.

    With ``metadata`` those that have all of these pairs; with none in it, those without any metadata.
    """
    if after is not None:
        _check(after)
    if metadata is None:
        found = await QUEUE.run(lambda: link.queue().list(limit + 1, after))
    else:
        found = await QUEUE.run(_matching, link, limit + 1, after, metadata)
    return found[:limit], len(found) > limit


def _matching(link: QueueLink, count: int, after: str | None, metadata: Mapping[str, str]) -> list[Job]:
    found: list[Job] = []
    while len(found) < count and (page := link.queue().list(_JOBS_AT_ONCE, after)):
        for job in page:
            given = metadata_of(job)
            if metadata.items() <= given.items() and (metadata or not given):
                found.append(job)
        after = page[-1].id
    return found


def metadata_wanted(parameters: Iterable[tuple[str, str]]) -> dict[str, str] | None:
    """Return the pairs that ``metadata[key]=value`` asks for, none for ``metadata=null``; None: no filter.

    Raises:
        InputError: it is written otherwise, or asks for one key twice.
    """
    given = [(name, value) for name, value in parameters if name.partition("[")[0] == "metadata"]
    if not given:
        return None
    if given == [("metadata", "null")]:
        return {}
    keys = [match[1] for name, _ in given if (match := _METADATA_KEY.fullmatch(name))]
    if len(set(keys)) < len(given):
        text = (
            "metadata filters as ?metadata[key]=value, each key once, or ?metadata=null for jobs without any"
        )
        raise InputError(text, param="metadata")
    return dict(zip(keys, (value for _, value in given), strict=True))


async def cancel_job(link: QueueLink, job_id: str) -> Job:
    """Cancel a job; raise ConflictError if it has ended otherwise."""
    _check(job_id)
    return await QUEUE.run(_cancel, link, job_id)


def _cancel(link: QueueLink, job_id: str) -> Job:
    """Write an end into the journal before it is confirmed: Redis may lose it in the next moment."""
    job = link.queue().cancel(job_id)
    if job.status.terminal:
        link.journal.record(job)
        link.queue().retire(job)
    return job


async def list_events(
    link: QueueLink, job_id: str, limit: int, after: str | None, *, newest_first: bool = False
) -> tuple[list[JobEvent], bool]:
    """Return the events that follow ``after`` in their order, and whether there are more."""
    start = checked_event_id(after)
    await get_job(link, job_id)
    found = await QUEUE.run(_read_events, link, job_id, start, limit + 1, newest_first=newest_first)
    return found[:limit], len(found) > limit


async def list_checkpoints(
    link: QueueLink, job_id: str, model_name: str, after: str | None
) -> dict[str, Any]:
    """Return the list of a job's checkpoints: its version once it succeeded, with the loss it ended with.

    Raises:
        NotFoundError: no such job, or ``after`` is no checkpoint of it.
    """
    job = await get_job(link, job_id)
    found = checkpoint_body(job, model_name, await _last_step(link, job_id))
    if after is None:
        return list_body([found] if found else [])
    if found is None or found["id"] != after:
        raise NotFoundError(f"there is no checkpoint {after[:80]!r} of job {job_id}", param="after")
    return list_body([])


async def _last_step(link: QueueLink, job_id: str) -> dict[str, Any]:
    """Return what the last training step reported; empty while Redis is away, or if it lost the events."""
    try:
        return await QUEUE.run(_find_last_step, link, job_id)
    except QueueUnavailable:
        return {}


def _find_last_step(link: QueueLink, job_id: str) -> dict[str, Any]:
    after = None
    while page := _read_events(link, job_id, after, _EVENTS_AT_ONCE, newest_first=True):
        for event in page:
            if event.type == "metrics" and "step" in event.data:
                return event.data
        after = page[-1].id
    return {}


def checked_event_id(value: str | None) -> str | None:
    """Return the event id to continue behind, None if none is given; raise InputError if it is no id."""
    if not value:
        return None
    if not EVENT_ID.fullmatch(value):
        raise InputError(
            "after / Last-Event-ID must be the id of an event, as in the list of events", param="after"
        )
    return value


async def follow_events(link: QueueLink, job_id: str, after: str | None) -> AsyncIterator[bytes]:
    """Yield server-sent events behind ``after``, oldest first, and a last one ``done`` when the job ended."""
    told = time.monotonic()
    try:
        while True:
            job = await get_job(link, job_id)
            events = await QUEUE.run(_read_events, link, job_id, after, _EVENTS_AT_ONCE)
            for event in events:
                after = event.id
                yield sse(event_body(event), event=event.type, event_id=event.id)
                told = time.monotonic()
            if job.status.terminal and not events:
                yield sse({"id": job.id, "status": job.status.value}, event="done")
                return
            if time.monotonic() - told > _KEEP_ALIVE_SECONDS:
                yield b": still here\n\n"
                told = time.monotonic()
            if not events:
                await asyncio.sleep(_POLL_SECONDS)
            if link.stopping:
                raise UnavailableError("the server is stopping; follow the job again with Last-Event-ID")
    except StrataError as error:
        yield sse(describe(error)[1], event="error")


def _read_events(
    link: QueueLink, job_id: str, after: str | None, limit: int, *, newest_first: bool = False
) -> list[JobEvent]:
    """Return events of a job that there is; Redis may have lost all of them."""
    try:
        return link.queue().events(job_id, after, limit, newest_first=newest_first)
    except NotFoundError:
        return []


def sse(body: object, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """Return one server-sent event."""
    head = (f"id: {event_id}\n" if event_id else "") + (f"event: {event}\n" if event else "")
    return f"{head}data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


def _check(job_id: str) -> None:
    try:
        check_job_id(job_id)
    except InputError as error:
        raise NotFoundError(error.message, param="job") from None
