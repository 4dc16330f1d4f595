"""What feedback and canaries answer, for as long as the gateway under test does not answer it itself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException

FULL = 8


def stand_in(app: FastAPI) -> None:
    """Add to ``app`` what it lacks; what it has is left to it."""
    known = {getattr(route, "path", "") for route in app.routes}
    routers = []
    if "/v1/feedback" not in known:
        routers.append(_feedback())
    if "/v1/adapters/{name}/canary" not in known:
        routers.append(_canary())
    before = list(app.router.routes)
    for router in routers:
        app.include_router(router)
    added = [route for route in app.router.routes if route not in before]
    app.router.routes[:] = [*added, *before]


def _feedback() -> APIRouter:
    router = APIRouter()
    pending: dict[str, list[dict[str, Any]]] = {}

    def state(task: str) -> dict[str, Any]:
        return {
            "count": len(pending.get(task, [])),
            "oldest_seconds": 3.0,
            "sent_at_count": FULL,
            "sent_after_seconds": 600.0,
        }

    @router.post("/v1/feedback")
    async def give(body: dict[str, Any]) -> dict[str, Any]:
        wanted = {"rating", "question", "image", "answer", "correction", "task", "version", "request_id"}
        if set(body) != wanted:
            raise HTTPException(400, f"the fields are {sorted(body)}")
        task = body["task"] or "unnamed"
        if body["correction"]:
            pending.setdefault(task, []).append(body)
        status = "pending" if body["correction"] else "noted"
        told = {"id": "fb-1", "object": "feedback", "rating": body["rating"], "task": task, "job": None}
        return {**told, "status": status, "pending": state(task)}

    @router.get("/v1/feedback")
    async def waiting() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"task": task, "last_job": None, **state(task)} for task in pending],
        }

    return router


def _canary() -> APIRouter:
    router = APIRouter()
    roles: dict[str, Any] = {"canary": None, "shadow": None}

    @router.get("/v1/adapters/{name}/canary")
    async def show(name: str) -> dict[str, Any]:
        seen = {
            "version": "v1",
            "requests": 40,
            "errors": 1,
            "error_ratio": 0.025,
            "p50_seconds": 0.21,
            "p95_seconds": 0.4,
            "thumbs_up": 3,
            "thumbs_down": 1,
        }
        agreement = {"compared": 10, "same": 9, "ratio": 0.9}
        return {**roles, "versions": [seen], "agreement": agreement, "rule": {"max_error_ratio": 0.05}}

    def put(role: str) -> None:
        @router.put(f"/v1/adapters/{{name}}/aliases/{role}")
        async def start(name: str, body: dict[str, Any]) -> dict[str, Any]:
            roles[role] = {"version": body["version"], "weight": body["weight"]}
            return {"alias": role, "version": body["version"], "revision": 1}

        @router.delete(f"/v1/adapters/{{name}}/aliases/{role}")
        async def end(name: str) -> dict[str, Any]:
            roles[role] = None
            return {"alias": role, "version": "base", "revision": 2}

    def post(verb: str) -> None:
        @router.post(f"/v1/adapters/{{name}}/canary:{verb}")
        async def act(name: str, body: dict[str, Any]) -> dict[str, Any]:
            version, roles["canary"] = roles["canary"]["version"], None
            return {"alias": "stable", "version": version, "revision": 3}

    for role in ("canary", "shadow"):
        put(role)
    for verb in ("promote", "rollback"):
        post(verb)
    return router
