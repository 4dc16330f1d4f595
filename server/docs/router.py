"""``/docs``: the API as a page that can be tried out, with everything it loads from this server."""

from __future__ import annotations

import asyncio
import gzip
from functools import lru_cache
from importlib import metadata, resources
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import HTMLResponse, Response

from adapter_store.errors import NotFoundError

router = APIRouter(prefix="/docs", include_in_schema=False)

_PACKAGE = "fastapi-offline"
"""A package that carries Swagger UI as files; nothing else of it is used."""
ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
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
<script>
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "list",
  persistAuthorization: true,
  validatorUrl: null,
});
</script>
</body>
</html>
"""


@router.get("")
async def page() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(_PAGE)


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
    plain, packed, tag = await asyncio.to_thread(_read, name)
    headers = {"etag": tag, "cache-control": "max-age=86400", "vary": "accept-encoding"}
    if if_none_match == tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in accept_encoding:
        return Response(packed, media_type=kind, headers={**headers, "content-encoding": "gzip"})
    return Response(plain, media_type=kind, headers=headers)


@lru_cache(maxsize=len(ASSETS))
def _read(name: str) -> tuple[bytes, bytes, str]:
    """Return a file as it is and compressed, with its ETag; raise NotFoundError without the package."""
    try:
        content = resources.files("fastapi_offline").joinpath("static", name).read_bytes()
        release = metadata.version(_PACKAGE)
    except (ModuleNotFoundError, FileNotFoundError):
        raise NotFoundError(f"this page needs the package {_PACKAGE}: pip install {_PACKAGE}") from None
    return content, gzip.compress(content, mtime=0), f'"{name}-{release}"'
