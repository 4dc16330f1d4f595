"""``/v1/datasets``: validate without training, keep for later jobs, look at."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from adapter_store.datasets import DatasetRef
from adapter_store.errors import InputError
from adapter_store.names import check_task_name
from server.gateway import GatewayDep
from server.openapi import After, Limit, body_example, example, form_example, merged
from server.pools import DATASETS, FILES
from server.tasks.service import read_json
from server.uploads import Form, is_multipart, received_form

router = APIRouter(prefix="/v1", tags=["teach"])

_REF = {
    "id": "ds-0123456789abcdef",
    "object": "dataset",
    "examples": 400,
    "images": 400,
    "digest": "9f86d0...",
}
_REPORT = {
    "ok": False,
    "summary": "the data set has 1 fault: line 3, answer: the answer is missing",
    "format": "examples",
    "faults": [{"line": 3, "field": "answer", "reason": "the answer is missing", "file": None}],
    "truncated_faults": 0,
    "warnings": [],
    "examples": 2,
    "turns": 2,
    "images": 2,
    "image_bytes": 20480,
    "answers": 2,
    "answers_truncated": False,
    "answer_histogram": [{"answer": "robin", "count": 1}, {"answer": "wren", "count": 1}],
    "duplicates": 0,
    "length_unit": "tokens",
    "question_lengths": {"median": 5, "p95": 5, "longest": 5},
    "answer_lengths": {"median": 2, "p95": 2, "longest": 2},
    "split": {
        "given": False,
        "train_examples": 2,
        "train_images": 2,
        "test_examples": 0,
        "test_images": 0,
    },
    "overlap": [{"task": "birds", "images": 1}],
}
_BODIES = merged(
    body_example({"examples": [{"question": "Which digit is it?", "answer": "seven"}]}),
    form_example(file="binary", question="What is shown?", task="birds"),
)


@router.post(
    "/datasets:validate",
    summary="Check a data set and store nothing: every fault with line, field and reason",
    responses=example(_REPORT),
    openapi_extra=_BODIES,
)
async def validate(request: Request, gateway: GatewayDep) -> dict[str, Any]:
    """Return the full report; 200 whether or not there are faults.

    ``question`` is asked where the data has none. With ``task``, the task that the data is for, pictures
    that it is measured on itself are not reported as an overlap.
    """
    DATASETS.require_room()
    if is_multipart(request):
        async with received_form(request, gateway.uploads, FILES.run) as form:
            path, (question, task) = form.file("file").path, _beside(form)
            report = await DATASETS.run(gateway.datasets.validate, path, question=question, task=task)
    else:
        body = await read_json(request, FILES.run)
        task = _task(body.get("task"))
        report = await DATASETS.run(gateway.datasets.validate_examples, _examples(body), task=task)
    return report.to_dict()


@router.post(
    "/datasets",
    status_code=201,
    summary="Keep a data set for later jobs; the same content gets the same id",
    responses=example(_REF, status=201),
    openapi_extra=_BODIES,
)
async def create(request: Request, gateway: GatewayDep) -> dict[str, Any]:
    """Validate and store; faults are a 400 whose ``error.report`` lists all."""
    DATASETS.require_room()
    if is_multipart(request):
        async with received_form(request, gateway.uploads, FILES.run) as form:
            sent = form.file("file")
            question, task = _beside(form)
            ref = await DATASETS.run(
                gateway.datasets.put, sent.path, filename=sent.filename, question=question, task=task
            )
    else:
        body = await read_json(request, FILES.run)
        ref = await DATASETS.run(gateway.datasets.put_examples, _examples(body))
    return _body(ref)


@router.get(
    "/datasets",
    summary="List stored data sets by their ids",
    responses=example({"object": "list", "data": [_REF], "has_more": False}),
)
async def list_page(gateway: GatewayDep, limit: Limit = 1000, after: After = None) -> dict[str, Any]:
    """Return a page of data sets behind ``after``; with ``has_more``, go on after the last id."""
    refs, more = await FILES.run(gateway.datasets.page, limit, after)
    return {"object": "list", "data": [_body(ref) for ref in refs], "has_more": more}


@router.get(
    "/datasets/{dataset_id}", summary="Show a stored data set with its report", responses=example(_REF)
)
async def show(dataset_id: str, gateway: GatewayDep) -> dict[str, Any]:
    """Return one data set and what validation found."""

    def read() -> dict[str, Any]:
        dataset = gateway.datasets.open(dataset_id)
        return {**_body(dataset.ref), "report": dataset.report()}

    return await FILES.run(read)


def _body(ref: DatasetRef) -> dict[str, Any]:
    return {"object": "dataset", **asdict(ref)}


def _beside(form: Form) -> tuple[str | None, str | None]:
    """Return the question and the task that a form names beside its file."""
    return form.fields.get("question"), _task(form.fields.get("task"))


def _task(name: Any) -> str | None:
    """Return the name of the task that data is for; raise InputError if it cannot be one."""
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise InputError("'task' must be the name of a task", param="task")
    return check_task_name(name)


def _examples(body: dict[str, Any]) -> list[Any]:
    """Return the ``examples`` of a JSON body."""
    examples = body.get("examples")
    if not isinstance(examples, list):
        raise InputError("give 'examples' (a list), or send a file as multipart/form-data", param="examples")
    return examples
