"""Optional API keys, compared in constant time; every path needs one unless it is listed as open.

A key is ``secret`` or ``secret:scope+scope``. The scopes: ``ask`` (answers), ``teach`` (data and jobs) and
``operate`` (aliases, everything). Paths are matched exactly and unlisted ones need ``operate``, so a path in
another case or with doubled slashes opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from adapter_store.errors import InputError
from server.docs.router import ASSETS
from server.errors import AuthenticationError, response_for
from server.page.files import PAGE_PATHS

LEAST_CHARACTERS = 8
SCOPES = frozenset({"ask", "teach", "operate"})
_OPEN = frozenset({"/", "/health", "/ready", "/version", "/metrics", "/docs", "/openapi.json"})
_DOCS = frozenset(f"/docs/{name}" for name in ASSETS)
OPEN_PATHS = _OPEN | _DOCS | PAGE_PATHS
_ASK_PREFIXES = ("/v1/chat/", "/v1/vqa", "/v1/routing:explain", "/v1/models", "/v1/evaluations/")
_TEACH_PREFIXES = ("/v1/tasks/", "/v1/files", "/v1/fine_tuning/", "/v1/datasets", "/v1/jobs", "/v1/feedback")
_READ_PREFIXES = ("/v1/adapters",)
CALLER: ContextVar[bytes] = ContextVar("caller", default=b"")
"""The digest of the key that the present request came with; empty if none was asked for."""
_WEIGHTS_SUFFIX = "/lora"
"""Weights leave the service only for those who operate it."""


@dataclass(frozen=True, slots=True)
class Key:
    """Hold the digest of one key and what it may do."""

    digest: bytes
    scopes: frozenset[str]


def parse_keys(text: str) -> tuple[Key, ...]:
    """Read comma-separated keys; raise InputError for one that cannot be meant or sent (never showing it)."""
    keys = []
    for position, item in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        secret, colon, scopes = item.partition(":")
        wanted = frozenset(filter(None, scopes.split("+"))) if colon else SCOPES
        if not wanted:  # a forgotten scope must not become every scope
            text = f"key {position} ends with a colon and names no scope"
            raise InputError(f"{text}; add ask, teach or operate, or leave the colon out", param="api_keys")
        if wanted - SCOPES:
            raise InputError(
                f"key {position} has an unknown scope; use ask, teach or operate", param="api_keys"
            )
        if len(secret) < LEAST_CHARACTERS:
            text = f"key {position} is shorter than {LEAST_CHARACTERS} characters; take a longer one"
            raise InputError(text, param="api_keys")
        if not secret.isascii() or not secret.isprintable() or secret != secret.strip():
            text = f"key {position} holds a character that is not plain ASCII, or a space at its end"
            raise InputError(f"{text}: no header can carry it", param="api_keys")
        keys.append(Key(_digest(secret), wanted))
    return tuple(keys)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def needed_scope(method: str, path: str) -> str:
    """Return the scope that ``method path`` needs."""
    if path.startswith(_ASK_PREFIXES):
        return "ask"
    if path.startswith(_TEACH_PREFIXES):
        return "teach"
    if path.startswith(_READ_PREFIXES) and path.endswith(_WEIGHTS_SUFFIX):
        return "operate"
    if method in ("GET", "HEAD") and path.startswith(_READ_PREFIXES):
        return "ask"
    return "operate"


def check(authorization: str, keys: Iterable[Key], scope: str) -> bytes:
    """Return the digest of the key; raise AuthenticationError unless it is known and has ``scope``.

    Every key is compared, so the time does not tell which one was close.
    """
    kind, _, secret = authorization.partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise AuthenticationError(
            "an API key is needed: send the header 'Authorization: Bearer <key>'", status=401
        )
    given = _digest(secret.strip())
    scopes: frozenset[str] | None = None
    for key in keys:
        if hmac.compare_digest(key.digest, given):
            scopes = key.scopes
    if scopes is None:
        raise AuthenticationError("this API key is not known here", status=401)
    if scope not in scopes and "operate" not in scopes:
        raise AuthenticationError(f"this API key may not do that: it lacks the scope {scope!r}", status=403)
    return given


class KeyCheck:
    """Refuse requests without a fitting key, before their bodies are read."""

    def __init__(self, app: ASGIApp, keys: tuple[Key, ...]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it is open or its key fits."""
        if scope["type"] == "http" and self._keys and scope["path"] not in OPEN_PATHS:
            headers = [value for name, value in scope["headers"] if name == b"authorization"]
            text = headers[0].decode("latin-1") if len(headers) == 1 else ""
            try:
                CALLER.set(check(text, self._keys, needed_scope(scope["method"], scope["path"])))
            except AuthenticationError as error:
                await response_for(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
