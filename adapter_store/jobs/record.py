"""The job record: what is asked of a worker, and how far it is.

Jobs carry references, never pictures: the data set is on disk before the job exists.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from adapter_store.datasets.records import DatasetRef
from adapter_store.errors import InputError
from adapter_store.names import check_lineage, check_task_name

_JOB_ID = re.compile(r"job-[A-Za-z0-9_-]{1,80}")

Setting = float | int | str | bool
SOURCE, FEEDBACK = "strata:source", "feedback"
"""Metadata of a job whose examples are corrections of answers; no caller can set it."""


class JobStatus(StrEnum):
    """Name the states of a job as the OpenAI fine-tuning API names them."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Tell whether nothing more will happen to the job."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


def new_job_id() -> str:
    """Return a fresh id ``job-<milliseconds, 12 hex digits><16 random hex digits>``; later ids sort later."""
    return f"job-{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex[:16]}"


def check_job_id(value: str) -> str:
    """Return ``value`` if it may name a job; raise InputError otherwise."""
    if not _JOB_ID.fullmatch(value):
        raise InputError(
            f"job id {value[:80]!r} is not allowed: it reads job- and then letters, digits, _ or -"
        )
    return value


def _valid(check: Any) -> AfterValidator:
    def apply(value: str) -> str:
        try:
            return check(value)
        except InputError as error:
            raise ValueError(error.message) from None

    return AfterValidator(apply)


class JobError(BaseModel):
    """Say why a job failed."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    param: str | None = None


class Job(BaseModel):
    """Describe one training job; times are seconds since 1970.

    Attributes:
        task: Task named by the caller, or None: the worker decides and fills it in.
        adapter: Stored LoRA that becomes the task's increments; None: they are trained.
        phase: Phase the worker is in (validate, encode, decide, ...), or None.
        attempts: How often the job was handed to a worker.
        seconds: Seconds spent per finished phase.
        fingerprint: sha256 of what was asked for, taken once (the worker may name the task later): two
            requests with one Idempotency-Key must agree in it.
        gate: Outcome of the forgetting gate, ``{"passed": bool, "reasons": [...]}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, _valid(check_job_id)] = Field(default_factory=new_job_id)
    lineage: Annotated[str, _valid(check_lineage)]
    task: Annotated[str, _valid(check_task_name)] | None = None
    dataset: DatasetRef
    adapter: Annotated[str, StringConstraints(pattern=r"^lora-[0-9a-f]{64}$")] | None = None
    hyperparameters: dict[str, Setting] = Field(default_factory=dict)
    metadata: dict[str, str] = Field(default_factory=dict)
    status: JobStatus = JobStatus.VALIDATING_FILES
    phase: str | None = None
    created_at: float = Field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    estimated_finish: float | None = None
    error: JobError | None = None
    decision: Literal["retrain", "expand"] | None = None
    result_version: str | None = None
    gate: dict[str, Any] | None = None
    attempts: int = 0
    idempotency_key: str | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    fingerprint: str = ""

    @property
    def corrects(self) -> bool:
        """Tell whether the examples are corrections of answers that were given."""
        return self.metadata.get(SOURCE) == FEEDBACK

    @model_validator(mode="after")
    def _keep_fingerprint(self) -> Self:
        if not self.fingerprint:
            wanted: list[Any] = [self.lineage, self.task, self.dataset.digest]
            wanted += [self.hyperparameters, self.metadata, *([self.adapter] if self.adapter else [])]
            digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
            object.__setattr__(self, "fingerprint", digest)
        return self


EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics", "phase"]


class JobEvent(BaseModel):
    """Report one step of a job; ``id`` grows along the job and serves as ``after`` and Last-Event-ID."""

    model_config = ConfigDict(frozen=True)

    id: str
    created_at: float
    level: EventLevel = "info"
    type: EventType = "message"
    message: str
    data: dict[str, Any] = Field(default_factory=dict)
