"""Headers of everything that a browser shows, and what browsers say in theirs."""

from __future__ import annotations

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
LOCKED = {
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Let a page do nothing but show itself and talk to this server, and let no other page hold it."""


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Tell whether a browser that sends this If-None-Match has the content of ``etag``."""
    return etag in {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}


def wishes(accept: str) -> dict[str, float]:
    """Return how much each thing that an Accept header names is wanted, from 0 (not at all) to 1."""
    found: dict[str, float] = {}
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        found[kind] = next((_quality(text[2:]) for text in parameters if text.startswith("q=")), 1.0)
    return found


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
