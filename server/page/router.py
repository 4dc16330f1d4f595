"""``/page/...``: the files of the page, with headers that let them do nothing but talk to this server."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response

from adapter_store.errors import NotFoundError
from server.page.files import INDEX, NAMES, PREFIX, page_file
from server.page.headers import LOCKED, is_known, wishes

router = APIRouter(include_in_schema=False)

_PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=1000)]


@router.get(PREFIX + "{name}", response_class=Response)
async def file(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """Return one file of the page, 304 if the browser has it."""
    if name not in NAMES or name == INDEX:
        raise NotFoundError(f"the page has no file {name[:80]!r}; it starts at /", param="name")
    return page_response(name, if_none_match)


def page_response(name: str, if_none_match: str | None) -> Response:
    """Return a file of the page, or 304 without a body if ``if_none_match`` names its content."""
    found = page_file(name)
    headers = {**LOCKED, "etag": found.etag}
    if name == INDEX:
        headers["vary"] = "accept"
    if is_known(found.etag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def wants_page(accept: str) -> bool:
    """Tell whether a client that sends this Accept header is a browser that shows pages.

    Programs send ``*/*``, ``application/json`` or nothing; they go on getting JSON.
    """
    wanted = wishes(accept)
    page = max((wanted.get(kind, 0.0) for kind in _PAGE_TYPES), default=0.0)
    return page > 0 and page >= wanted.get("application/json", 0.0)
