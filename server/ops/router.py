"""``/``, ``/health``, ``/ready``, ``/version`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from adapter_store.errors import UnavailableError
from server.errors import describe
from server.gateway import GatewayDep
from server.metrics import CONTENT_TYPE
from server.openapi import example
from server.page.files import INDEX
from server.page.router import page_response, wants_page

if TYPE_CHECKING:
    from server.serving import Serving

router = APIRouter(tags=["operate"])

_DISTRIBUTION = "strata-llava"


def program_version() -> str:
    """Return the installed version of the project."""
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


_FRONT_DOOR = {
    "name": "Strata",
    "what": "a LLaVA server that keeps learning",
    "model": "strata",
    "ready": True,
    "ask": ["POST /v1/chat/completions", "POST /v1/vqa"],
    "teach": ["POST /v1/tasks/{task}/batches", "POST /v1/fine_tuning/jobs"],
    "look": ["/docs", "/v1/models", "/v1/evaluations/matrix", "/ready", "/metrics"],
}


@router.get(
    "/",
    summary="What this server is and where to go; a page for browsers (Accept: text/html)",
    responses=example(_FRONT_DOOR),
    response_model=None,
)
async def front_door(request: Request, gateway: GatewayDep) -> Response:
    """Point newcomers to what helps: people to the page, programs to the endpoints."""
    if wants_page(request.headers.get("accept", "")):
        return page_response(INDEX, request.headers.get("if-none-match"))
    body = {**_FRONT_DOOR, "model": gateway.model_name, "ready": gateway.serving is not None}
    return JSONResponse(body, headers={"vary": "accept"})


@router.get(
    "/health", summary="200 while the process and its engine work", responses=example({"status": "ok"})
)
async def health(gateway: GatewayDep) -> dict[str, Any]:
    """Tell whether a restart is called for: 503 once the engine has died and does not come back by itself."""
    if gateway.serving is not None and not gateway.serving.engine.stats().restarting:
        _check_engine(gateway.serving)
    return {"status": "ok"}


def _check_engine(serving: Serving) -> None:
    if serving.trouble is not None:
        raise UnavailableError(serving.trouble)


def _state(gateway: GatewayDep) -> str:
    """Return in one word why a gateway is not ready."""
    if gateway.serving is None:
        return "starting" if gateway.failure is None else "failed"
    return "restarting" if gateway.serving.engine.stats().restarting else "failed"


@router.get(
    "/ready",
    summary="200 once the base is loaded and the stable version probed",
    responses=example({"status": "ready", "version": "v3", "base": "strata-base-135m"}),
    response_model=None,
)
async def ready(gateway: GatewayDep) -> JSONResponse | dict[str, Any]:
    """Tell whether questions are answered; 503 says what is missing.

    ``status`` is then ``starting``, ``restarting`` (the engine died and comes back) or ``failed``.
    """
    try:
        serving = gateway.ready()
        _check_engine(serving)
    except UnavailableError as error:
        status, body, headers = describe(error)
        state = {"status": _state(gateway), "reason": body["error"]["message"]}
        return JSONResponse({**body, **state}, status, headers)
    return {
        "status": "ready",
        "version": serving.live.served,
        "base": serving.base_id,
        "model": gateway.model_name,
        "loaded": sorted(serving.engine.loaded()),
        "refused": serving.live.refused,
    }


@router.get("/version", summary="Versions of program and base", responses=example({"version": "0.1.0"}))
async def version(gateway: GatewayDep) -> dict[str, Any]:
    """Return what runs here."""
    serving = gateway.serving
    return {
        "version": program_version(),
        "base": serving.base_id if serving else None,
        "base_digest": serving.base_digest if serving else None,
        "adapter_version": serving.live.served if serving else None,
    }


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses=example("strata_queue_depth 0", media_type="text/plain"),
)
async def metrics(gateway: GatewayDep) -> Response:
    """Return every series in the text format."""
    if gateway.serving is not None:
        gateway.metrics.show_inflight(gateway.serving.live.inflight())
    return Response(await asyncio.to_thread(gateway.metrics.render), media_type=CONTENT_TYPE)
