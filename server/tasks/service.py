"""Turn a batch for a task, in any of its forms, into a submitted job."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from adapter_store.datasets import DatasetRef
from adapter_store.errors import InputError
from adapter_store.jobs import Job
from adapter_store.jobs.record import Setting
from adapter_store.names import check_task_name
from server.errors import SEND_JSON, not_json
from server.gateway import Gateway
from server.jobs.hyperparameters import checked_hyperparameters, from_text
from server.jobs.submission import checked_metadata
from server.pools import DATASETS, FILES, QUEUE, Run
from server.uploads import Form, is_multipart, received_form

_KNOWN = frozenset({"examples", "dataset", "hyperparameters", "metadata"})
_OR_A_FILE = ", or a form with a file as multipart/form-data"
_EXAMPLE = '{"examples": [{"question": "Which digit is it?", "answer": "seven"}]}'
_KINDS: dict[type, str] = {
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
_FORM_DATA = frozenset({"question", "answer", "hyperparameters", "dataset"})


async def submit_batch(gateway: Gateway, task: str, request: Request, idempotency_key: str | None) -> Job:
    """Read the body as JSON or form and queue a job for ``task``.

    Raises:
        InputError: the body has no data, or a setting cannot be one.
        DatasetError: the data has faults; all of them are in the report.
    """
    check_task_name(task)
    await QUEUE.run(gateway.link.queue)  # while Redis is away nothing can be accepted
    if is_multipart(request):
        DATASETS.require_room()
        async with received_form(request, gateway.uploads, FILES.run) as form:
            return await _submit_form(gateway, task, form, idempotency_key)
    body = await read_json(request, FILES.run)
    settings = checked_hyperparameters(_mapping(body, "hyperparameters"))
    metadata = checked_metadata(_mapping(body, "metadata"))
    unknown = sorted(set(body) - _KNOWN)
    if unknown:
        names = ", ".join(name[:40] for name in unknown[:8])
        raise InputError(
            f"unknown fields: {names}; known: {', '.join(sorted(_KNOWN))}", param=unknown[0][:40]
        )
    ref = await _dataset_of(gateway, body, task)
    return await gateway.submissions.submit(
        ref, task=task, hyperparameters=settings, metadata=metadata, idempotency_key=idempotency_key
    )


async def read_json(
    request: Request, run: Run, example: str = _EXAMPLE, *, takes_files: bool = True
) -> dict[str, Any]:
    """Return the body as a JSON object, parsed in a thread of ``run``.

    A body of another type is none either: a browser lets any page send those to any server. With
    ``takes_files`` the message tells that a form would do, too.

    Raises:
        InputError: it is none; the message has ``example``, a body that would do.
    """
    advice = f"; {SEND_JSON}{_OR_A_FILE if takes_files else ''}"
    raw = await request.body()
    if not raw:
        raise InputError(f"the body is empty{advice}")
    if not _is_json(request.headers.get("content-type", "")):
        raise InputError(f"the body is not declared as JSON{advice}")
    body = await run(functools.partial(_parsed, raw, "the body", advice=advice))
    if not isinstance(body, dict):
        raise InputError(f"the body is {_KINDS[type(body)]}; send a JSON object such as {example}")
    return body


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _parsed(raw: bytes, what: str, *, advice: str = "", param: str | None = None) -> Any:
    """Return the JSON value of bytes that a client sent; raise InputError that says where it is broken."""
    try:
        return _parse(raw)
    except UnicodeEncodeError:
        reason = "has half of a surrogate pair (\\ud800 to \\udfff): that is no text"
    except RecursionError:
        reason = "is JSON that is nested too deeply"
    except json.JSONDecodeError as error:
        reason = f"{not_json(error)}{advice}"
    except ValueError:
        reason = f"is not JSON: it is no UTF-8, or a number in it is too long{advice}"
    raise InputError(f"{what} {reason}", param=param)


def _parse(raw: bytes) -> Any:
    """Return the JSON value; raise UnicodeEncodeError if a text in it cannot be written as UTF-8."""
    body = json.loads(raw)
    if b"\\u" in raw:
        json.dumps(body, ensure_ascii=False).encode()
    return body


async def _dataset_of(gateway: Gateway, body: Mapping[str, Any], task: str) -> DatasetRef:
    examples, dataset = body.get("examples"), body.get("dataset")
    if (examples is None) == (dataset is None):
        raise InputError(
            "give either 'examples' (a list) or 'dataset' (the id of a stored one)", param="examples"
        )
    if dataset is not None:
        return await FILES.run(gateway.datasets.ref, str(dataset)[:80])
    if not isinstance(examples, list):
        raise InputError("'examples' must be a list", param="examples")
    return await DATASETS.run(gateway.datasets.put_examples, examples, task=task)


async def _submit_form(gateway: Gateway, task: str, form: Form, idempotency_key: str | None) -> Job:
    for name in ("file", "dataset_file", "image"):
        if name in form.fields:
            text = f"{name} came as text, not as an upload: with curl, write -F {name}=@FILE with the @"
            raise InputError(text, param=name)
    settings = checked_hyperparameters(_form_settings(form))
    has_file = "file" in form.files or "dataset_file" in form.files
    if "answer" in form.fields or ("question" in form.fields and not has_file):
        ref = await DATASETS.run(_put_single, gateway, form)
    elif "dataset" in form.fields:
        ref = await FILES.run(gateway.datasets.ref, form.fields["dataset"])
    else:
        sent = form.file("file", "dataset_file")
        return await gateway.submissions.submit_file(
            sent.path,
            sent.filename,
            task=task,
            hyperparameters=settings,
            idempotency_key=idempotency_key,
            question=form.fields.get("question"),
        )
    return await gateway.submissions.submit(
        ref, task=task, hyperparameters=settings, idempotency_key=idempotency_key
    )


def _put_single(gateway: Gateway, form: Form) -> DatasetRef:
    """Keep the one example of a form with ``question``, ``answer`` and perhaps ``image``."""
    example: dict[str, Any] = {
        name: form.fields[name] for name in ("question", "answer") if name in form.fields
    }
    images = {}
    if "image" in form.files:
        example["image"] = "image"
        images["image"] = form.files["image"].read_picture()
    return gateway.datasets.put_examples([example], images)


def _form_settings(form: Form) -> dict[str, Setting]:
    """Return the settings of a form: the JSON field ``hyperparameters``, and every other plain field."""
    settings: dict[str, Any] = {}
    if "hyperparameters" in form.fields:
        what = "the field hyperparameters"
        settings = _parsed(form.fields["hyperparameters"].encode(), what, param="hyperparameters")
        if not isinstance(settings, dict):
            raise InputError(f"{what} must be a JSON object", param="hyperparameters")
    for name, text in form.fields.items():
        if name not in _FORM_DATA:
            settings[name] = from_text(text)
    return settings


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object", param=name)
    return value
