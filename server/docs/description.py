"""Complete the description of the API that FastAPI derives: what it cannot know, and what is not so here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.auth import OPEN_PATHS

ABOUT = """\
Ask about pictures in the shape of the OpenAI API, teach with small batches of examples, and operate what was
learned. Every error, whatever its status, is `{"error": {"message", "type", "param", "code"}}`, and every
answer has the header `x-request-id`. 429 and 503 carry `Retry-After`; 409 carries `x-should-retry: false`.

Where the operator set `STRATA_API_KEYS`, send `Authorization: Bearer <key>`.
"""
_PARAMETERS = {
    "alias": "stable",
    "correction": "fb-0c6f2f4d6b0f4f0c9a52a4a0d4c0b7e1",
    "dataset_id": "ds-0123456789abcdef",
    "file_id": "file-0193f2a4c0de1f2e3d4c5b6a79801122",
    "job_id": "job-0193f2a4c0de1f2e3d4c5b6a7980",
    "model": "strata@base",
    "name": "strata",
    "task": "digits",
    "version": "v3",
}
_TAGS = (
    ("ask", "Questions about pictures, and which increments answer them."),
    ("teach", "Examples in, a job that learns them out."),
    ("files", "Uploaded data sets, in OpenAI's shape."),
    ("fine-tuning", "Training jobs, in OpenAI's shape."),
    ("jobs", "The same jobs by a shorter name, their events oldest first."),
    ("evaluate", "What every stage kept and lost."),
    ("operate", "Versions, aliases, health and metrics."),
)
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "report": {"type": "object", "description": "every fault of a data set or a LoRA"},
            },
        }
    },
}
_ERROR_REF = {"$ref": "#/components/schemas/Error"}


def install_description(app: FastAPI) -> None:
    """Make ``app`` describe itself as it is; the description is built once, when it is first asked for."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=ABOUT,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in _TAGS],
    )
    parts = schema.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    schemas["Error"] = _ERROR
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            _complete(path, operation)
    return schema


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Tell what validation really answers, the shape of errors, who may ask, and examples of parameters."""
    responses = operation["responses"]
    responses.pop("422", None)  # faults of a request are 400 here
    for status in ("4XX", "5XX"):
        for content in responses.get(status, {}).get("content", {}).values():
            content["schema"] = _ERROR_REF
    operation["security"] = [] if path in OPEN_PATHS else [{}, {"key": []}]
    for parameter in operation.get("parameters", ()):
        known = _PARAMETERS.get(parameter["name"])
        if parameter["in"] == "path" and known is not None:
            parameter.setdefault("example", known)
