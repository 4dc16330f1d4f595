"""What routes share: the parameters of pages, and builders of examples and of the one error shape."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=100)]
"""The id behind which a page begins."""

PICTURE_EXAMPLE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR42mM4ISdHEmIY1TCqYfhqAADkYgQQ6ZuA8QAA"
    "AABJRU5ErkJggg=="
)
"""A red square, whole, so that the examples can be sent as they stand."""
ERROR_EXAMPLE = {
    "error": {
        "message": "the model 'strata@v9' does not exist; there are: strata, strata@base, strata@v1 "
        "(GET /v1/models lists them)",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
}
_ERROR = {"description": "Error", "content": {"application/json": {"example": ERROR_EXAMPLE}}}


def example(
    body: Any, *, status: int = 200, media_type: str = "application/json", **others: str
) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route: one example answer and the error shape.

    ``others`` are examples of the answer in its other media types, by subtype of ``text/``.
    """
    content: dict[str, Any] = {media_type: {"example": body}}
    for subtype, text in others.items():
        content[f"text/{subtype.replace('_', '-')}"] = {"example": text}
    return {status: {"content": content}, "4XX": _ERROR, "5XX": _ERROR}


def body_example(value: Any, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return ``openapi_extra`` of a route that reads a JSON body, an object, itself."""
    content = {"schema": schema or {"type": "object"}, "example": value}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def form_example(**parts: str) -> dict[str, Any]:
    """Return ``openapi_extra`` of a route that reads a multipart form itself; value ``binary`` is a file."""
    properties = {
        name: {"type": "string", "format": "binary"}
        if text == "binary"
        else {"type": "string", "example": text}
        for name, text in parts.items()
    }
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def merged(*extras: dict[str, Any]) -> dict[str, Any]:
    """Join the content types of several request bodies."""
    content: dict[str, Any] = {}
    for extra in extras:
        content.update(extra["requestBody"]["content"])
    return {"requestBody": {"required": True, "content": content}}
