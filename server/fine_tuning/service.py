"""Turn OpenAI's request for a job into a submitted one."""

from __future__ import annotations

from typing import Any

from adapter_store.errors import InputError
from adapter_store.jobs import Job
from adapter_store.jobs.hyperparameters import Hyperparameters
from adapter_store.jobs.record import Setting
from adapter_store.names import check_task_name
from adapter_store.versions import STABLE
from server.adaptation import UnknownModel
from server.files.store import no_file
from server.fine_tuning.protocol import CreateJob
from server.gateway import Gateway
from server.jobs.hyperparameters import checked_hyperparameters
from server.jobs.protocol import SUFFIX, TRAINING_FILE
from server.jobs.submission import checked_metadata
from server.pools import FILES


async def create_job(gateway: Gateway, wanted: CreateJob, idempotency_key: str | None) -> Job:
    """Validate the named file and queue a job that learns it; raises as ``Submissions.submit_file``."""
    _check_model(gateway, wanted.model)
    if wanted.validation_file:
        text = "validation_file is not used: held-out pictures are split off the training file; leave it out"
        raise InputError(text, param="validation_file")
    metadata = checked_metadata(wanted.metadata)
    task = metadata.get("task")
    if task is not None:
        check_task_name(task)
    settings = _settings(wanted)
    record = await FILES.run(gateway.files.get, wanted.training_file)
    path = await FILES.run(gateway.files.content, record.id)
    own = {TRAINING_FILE: record.id}
    if wanted.suffix:
        own[SUFFIX] = wanted.suffix
    try:
        return await gateway.submissions.submit_file(
            path,
            record.filename,
            task=task,
            hyperparameters=settings,
            metadata={**metadata, **own},
            idempotency_key=idempotency_key,
        )
    except FileNotFoundError:
        raise no_file(record.id) from None  # deleted while it was read


def _settings(wanted: CreateJob) -> dict[str, Setting]:
    settings = checked_hyperparameters(_hyperparameters(wanted))
    if wanted.seed is None:
        return settings
    settings.setdefault("seed", wanted.seed)
    other = Hyperparameters.of_job(Hyperparameters(), settings).seed
    if other != wanted.seed:
        text = f"seed {wanted.seed} and hyperparameters.seed {other} are one setting: send one"
        raise InputError(text, param="seed")
    return settings


def _hyperparameters(wanted: CreateJob) -> dict[str, Any]:
    given = dict(wanted.hyperparameters or {})
    if wanted.method is not None:
        if wanted.method.type != "supervised":
            text = f"method {wanted.method.type[:40]!r} is not supported: use 'supervised'"
            raise InputError(text, param="method.type")
        if wanted.method.supervised is not None:
            given.update(wanted.method.supervised.hyperparameters)
    return given


def _check_model(gateway: Gateway, model: str) -> None:
    """Accept the served model; training goes on from what ``stable`` names, also after a rollback."""
    if model not in (gateway.model_name, f"{gateway.model_name}@{STABLE}"):
        text = f"the model {model[:120]!r} cannot be taught here; there is: {gateway.model_name}"
        if model.startswith(f"{gateway.model_name}@"):
            text += " (training goes on from stable; promote another version first)"
        raise UnknownModel(text, param="model")
