"""Read and write the job records in Redis; both the queue and a claim stand on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import redis
from pydantic import TypeAdapter, ValidationError

from adapter_store.errors import InputError, LeaseLost, NotFoundError
from adapter_store.jobs import scripts
from adapter_store.jobs.connection import guarded
from adapter_store.jobs.keys import Keys
from adapter_store.jobs.record import EventLevel, EventType, Job, check_job_id

_FIXED = frozenset({"id", "lineage", "created_at", "idempotency_key", "dataset", "adapter"})
_FIELDS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(field.rebuild_annotation())
    for name, field in Job.model_fields.items()
    if name not in _FIXED
}


class Ledger:
    """Keep the job records of one lineage."""

    def __init__(self, client: redis.Redis, lineage: str) -> None:
        self.client = client
        self.keys = Keys(lineage)
        self._scripts: dict[str, Any] = {}

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Any:
        """Run one of ``scripts``; Redis errors pass through."""
        if script not in self._scripts:
            self._scripts[script] = self.client.register_script(script)
        return self._scripts[script](keys=list(keys), args=list(arguments))

    def get(self, job_id: str) -> Job:
        """Return a job; raise NotFoundError."""
        check_job_id(job_id)
        with guarded(f"read job {job_id}"):
            fields: Any = self.client.hgetall(self.keys.job(job_id))
        if not fields:
            raise missing(job_id)
        return parse(fields, job_id)

    def update(self, job_id: str, fence: int, fields: dict[str, Any]) -> Job:
        """Change fields; raise LeaseLost if the fence is stale or the job has ended."""
        arguments = encode_fields(fields)
        if not arguments:
            return self.get(job_id)
        with guarded(f"update job {job_id}"):
            keys = [self.keys.job(job_id), self.keys.fence]
            answer = self.run(scripts.UPDATE, keys, [fence, *arguments])
        if answer == "lost":
            raise lost(job_id)
        return self.get(job_id)

    def append_event(
        self,
        job_id: str,
        fence: int,
        message: str,
        level: EventLevel,
        type: EventType,  # noqa: A002 - the word of the OpenAI event record
        data: dict[str, Any] | None,
    ) -> str:
        """Append an event and return its id; raise LeaseLost (stale fence) or InputError."""
        if level not in get_args(EventLevel) or type not in get_args(EventType):
            raise InputError(f"an event cannot have level {level!r} and type {type!r}")
        body = _dump(data or {}, "event data")
        with guarded(f"report progress of job {job_id}"):
            keys = [self.keys.job(job_id), self.keys.fence, self.keys.events(job_id)]
            answer = str(self.run(scripts.EVENT, keys, [fence, level, type, message, body]))
        if answer == "lost":
            raise lost(job_id)
        return answer

    def is_cancelled(self, job_id: str) -> bool:
        """Tell whether the job was asked to stop."""
        with guarded(f"read job {job_id}"):
            return self.client.hget(self.keys.job(job_id), "_cancel") == "1"


def encode_fields(fields: dict[str, Any]) -> list[str]:
    """Return ``[name, JSON, ...]``; raise InputError for a field that is unknown or of another type."""
    flat: list[str] = []
    for name, value in fields.items():
        if name not in _FIELDS:
            raise InputError(f"a job has no field {name!r} that may change", param=name)
        try:
            checked = _FIELDS[name].validate_python(value)
        except ValidationError as error:
            raise InputError(f"job field {name!r}: {error.errors()[0]['msg']}", param=name) from None
        flat += [name, _dump(_FIELDS[name].dump_python(checked, mode="json"), name)]
    return flat


def encode_job(job: Job) -> list[str]:
    """Return all fields of a job as ``[name, JSON, ...]``."""
    flat: list[str] = []
    for name, value in job.model_dump(mode="json").items():
        flat += [name, _dump(value, name)]
    return flat


def parse(fields: Mapping[str, str], job_id: str) -> Job:
    """Return the job that a Redis hash holds; raise NotFoundError if it is not one."""
    try:
        return Job.model_validate({k: json.loads(v) for k, v in fields.items() if not k.startswith("_")})
    except ValueError as error:
        raise NotFoundError(f"the record of job {job_id} in Redis cannot be read: {error}") from error


def missing(job_id: str) -> NotFoundError:
    """Return the error for an unknown job."""
    return NotFoundError(f"no job {job_id}: list the jobs to see which there are", param="job_id")


def lost(job_id: str) -> LeaseLost:
    """Return the error for a claim that is no longer current."""
    return LeaseLost(f"the lease on job {job_id} is gone: it was taken over or has ended; stop working on it")


def _dump(value: Any, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} has to be plain JSON without NaN or Infinity: {error}", param=name
        ) from None
