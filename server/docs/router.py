"""``/docs``: the API as a page that can be tried out, with everything it loads from this server."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from functools import lru_cache
from importlib import resources
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import HTMLResponse, Response

from adapter_store.errors import NotFoundError
from server.page.headers import LOCKED, is_known, wishes

router = APIRouter(prefix="/docs", include_in_schema=False)

_PACKAGE = "fastapi-offline"
"""A package that carries Swagger UI as files; nothing else of it is used."""
_OWN = "start.js"
ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", _OWN: "text/javascript"}
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Strata: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<noscript>This page needs JavaScript; <a href="/openapi.json">the same as data</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""


@router.get("")
async def page() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(_PAGE, headers=LOCKED)


@router.get("/{name}")
async def asset(
    name: str,
    accept_encoding: Annotated[str, Header()] = "",
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """Return a file that the page loads; browsers ask again after a day."""
    kind = ASSETS.get(name)
    if kind is None:
        raise NotFoundError(f"there is no /docs/{name[:80]}; the page is at /docs")
    packed = _wants_gzip(accept_encoding)
    content, tag = await asyncio.to_thread(_read, name, packed=packed)
    headers = {**LOCKED, "etag": tag, "cache-control": "max-age=86400", "vary": "accept-encoding"}
    if is_known(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    if packed:
        headers["content-encoding"] = "gzip"
    return Response(content, media_type=kind, headers=headers)


def _wants_gzip(accept_encoding: str) -> bool:
    wanted = wishes(accept_encoding)
    quality = wanted.get("gzip", wanted.get("*", 0.0))
    return quality > 0 and quality >= wanted.get("identity", 0.0)


@lru_cache(maxsize=2 * len(ASSETS))
def _read(name: str, *, packed: bool) -> tuple[bytes, str]:
    """Return a file, plain or compressed, with the ETag of that; raise NotFoundError without the package."""
    try:
        place = ("server.docs", name) if name == _OWN else ("fastapi_offline", f"static/{name}")
        content = resources.files(place[0]).joinpath(place[1]).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise NotFoundError(f"this page needs the package {_PACKAGE}: pip install {_PACKAGE}") from None
    sent = gzip.compress(content, mtime=0) if packed else content
    return sent, f'"{hashlib.sha256(sent).hexdigest()[:32]}"'
