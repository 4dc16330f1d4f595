"""Jobs and events as HTTP shows them: OpenAI's fine-tuning shape, with what it lacks beside it."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from adapter_store.jobs import Job, JobEvent, JobStatus

OWN_PREFIX = "strata:"
"""Metadata keys of callers never begin so: a job keeps there what the OpenAI request carries beside them."""
TRAINING_FILE = f"{OWN_PREFIX}training_file"
SUFFIX = f"{OWN_PREFIX}suffix"


def job_body(job: Job, model_name: str, promoted: AbstractSet[str]) -> dict[str, Any]:
    """Return one job; times are whole seconds since 1970 as in the OpenAI API.

    ``promoted``: as for ``job_outcome``.
    """
    own = {key: value for key, value in job.metadata.items() if key.startswith(OWN_PREFIX)}
    served = f"{model_name}@{job.result_version}" if job.result_version else None
    shown = {
        "n_epochs": "auto",
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
        **job.hyperparameters,
    }
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "started_at": _whole(job.started_at),
        "finished_at": _whole(job.finished_at),
        "estimated_finish": _whole(job.estimated_finish),
        "status": job.status.value,
        "outcome": job_outcome(job, promoted),
        "error": job.error.model_dump() if job.error else None,
        "model": model_name,
        "fine_tuned_model": served,
        "organization_id": "strata",
        "result_files": [],
        "trained_tokens": None,
        "training_file": own.get(TRAINING_FILE, job.dataset.id),
        "user_provided_suffix": own.get(SUFFIX),
        "validation_file": None,
        "seed": int(float(job.hyperparameters.get("seed", 0))),  # a text like "7" is a number, too
        "hyperparameters": shown,
        "method": {"type": "supervised", "supervised": {"hyperparameters": shown}},
        "metadata": metadata_of(job) or None,
        "task": job.task,
        "adapter": job.adapter,
        "phase": job.phase,
        "decision": job.decision,
        "result_version": job.result_version,
        "gate": job.gate,
        "dataset": {
            "id": job.dataset.id,
            "examples": job.dataset.examples,
            "images": job.dataset.images,
            "digest": job.dataset.digest,
        },
        "seconds": job.seconds,
        "attempts": job.attempts,
    }


def job_outcome(job: Job, promoted: AbstractSet[str]) -> str:
    """Return what came of a job: its status, and for one that succeeded what became of its version.

    ``learned``: the version was served, also if ``stable`` was moved since, and also if somebody promoted it
    by hand. ``held_back``: the gate kept it. ``not_served``: the gate let it pass, but ``stable`` was moved
    while it was learned.

    Args:
        job: as the queue knows it; its gate says what became of the version when the job ended.
        promoted: every version that ``stable`` names or has named.
    """
    if job.status is not JobStatus.SUCCEEDED:
        return job.status.value
    if is_learned(job) or job.result_version in promoted:
        return "learned"
    return "not_served" if (job.gate or {}).get("passed", True) else "held_back"


def is_learned(job: Job) -> bool:
    """Tell whether a job's version was served when the job ended."""
    promotion = (job.gate or {}).get("promotion")
    return job.status is JobStatus.SUCCEEDED and promotion in ("promoted", "superseded")


def metadata_of(job: Job) -> dict[str, str]:
    """Return the metadata that the caller gave."""
    return {key: value for key, value in job.metadata.items() if not key.startswith(OWN_PREFIX)}


def event_body(event: JobEvent) -> dict[str, Any]:
    """Return one event in OpenAI's shape."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }


def checkpoint_body(job: Job, model_name: str, last: dict[str, Any]) -> dict[str, Any] | None:
    """Return the version a job made as its checkpoint, None if there is none; ``last`` is its last step."""
    if not job.result_version or job.status is not JobStatus.SUCCEEDED:
        return None
    metrics = {"step": last.get("step"), "train_loss": last.get("loss")}
    return {
        "id": f"ckpt-{job.id.removeprefix('job-')}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(job.finished_at or job.created_at),
        "fine_tuned_model_checkpoint": f"{model_name}@{job.result_version}",
        "fine_tuning_job_id": job.id,
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "step_number": last.get("step") or 1,
    }


def list_body(data: list[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """Return OpenAI's list shape."""
    ids = [item.get("id") for item in data]
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
