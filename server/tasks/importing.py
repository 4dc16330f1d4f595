"""Turn an uploaded LoRA and its data set into a submitted job."""

from __future__ import annotations

from fastapi import Request

from adapter_store.errors import InputError, LoraError
from adapter_store.jobs import Job
from adapter_store.lora.reading import Lineage
from adapter_store.names import check_task_name
from server.gateway import Gateway
from server.pools import DATASETS, FILES, QUEUE
from server.uploads import Form, received_form

_KNOWN = ("adapter", "file")


async def submit_lora(gateway: Gateway, task: str, request: Request, idempotency_key: str | None) -> Job:
    """Read the form, keep the LoRA and the data, and queue a job that makes the LoRA the task ``task``.

    Raises:
        InputError: the form lacks a file or has a field that an import does not know.
        LoraError: the LoRA cannot become a task; all faults are in the report.
        DatasetError: the data has faults; all of them are in the report.
    """
    check_task_name(task)
    await QUEUE.run(gateway.link.queue)  # while Redis is away nothing can be accepted
    DATASETS.require_room()
    async with received_form(request, gateway.uploads, FILES.run) as form:
        _check_names(form)
        adapter, data = form.file("adapter"), form.file("file")
        lineage = await _lineage(gateway)
        work = adapter.path.parent / "adapter"
        try:
            lora_id = await DATASETS.run(gateway.loras.put, adapter.path, work, lineage=lineage, task=task)
        except LoraError:
            gateway.metrics.submissions.labels("invalid").inc()
            raise
        return await gateway.submissions.submit_file(
            data.path,
            data.filename,
            task=task,
            hyperparameters={},
            idempotency_key=idempotency_key,
            adapter=lora_id,
        )


def _check_names(form: Form) -> None:
    unknown = sorted({*form.fields, *form.files} - {*_KNOWN})
    if unknown:
        names, known = ", ".join(unknown[:8]), " and ".join(_KNOWN)
        text = f"unknown parts: {names}; an import trains nothing and takes {known}, as files"
        raise InputError(text, param=unknown[0])


async def _lineage(gateway: Gateway) -> Lineage | None:
    """Return what is known here of what a LoRA must fit; the trainer looks again, and at the rest."""
    serving = gateway.serving
    if serving is None:
        return None
    async with serving.live.lease(gateway.model_name) as leased:
        state = leased.resident.state if leased.resident else None
        return Lineage.of(serving.increments.paths, serving.increments.shapes, state)
