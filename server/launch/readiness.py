"""Wait until the gateway says that it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

_POLL_SECONDS = 0.25


def readiness(client: httpx.Client) -> tuple[bool, str]:
    """Return whether `/ready` answers 200, and in words what is missing otherwise."""
    try:
        response = client.get("/ready")
    except httpx.HTTPError:
        return False, "starting"
    if response.status_code == 200:
        return True, "ready"
    return False, _reason(response)


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return f"status {response.status_code}"
    return str(body.get("reason") or body.get("status") or f"status {response.status_code}")


def wait_until_ready(
    url: str,
    *,
    timeout_seconds: float,
    give_up: Callable[[], bool],
    on_wait: Callable[[float, str], None] | None = None,
) -> bool:
    """Poll until the gateway is ready.

    Args:
        url: Address of the gateway.
        timeout_seconds: Longest wait.
        give_up: Asked between polls; True ends the wait.
        on_wait: Called with (seconds waited, what is missing) after each unready answer.

    Returns:
        Whether it became ready.
    """
    began = time.monotonic()
    # One client for all polls: each new one reads the system's certificates, while the cores are busy.
    with httpx.Client(base_url=url, timeout=5.0, trust_env=False) as client:
        while time.monotonic() - began < timeout_seconds and not give_up():
            ready, reason = readiness(client)
            if ready:
                return True
            if on_wait is not None:
                on_wait(time.monotonic() - began, reason)
            time.sleep(_POLL_SECONDS)
    return False
