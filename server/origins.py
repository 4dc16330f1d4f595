"""What keeps a web page of somebody else's from operating this server through the browser that shows it.

A browser sends what any page asks for: a form or a plain POST even to another site, and, once a page's own
name is made to resolve to 127.0.0.1, reads as well. Programs send neither Origin nor Sec-Fetch-Site, and
nothing changes for them.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import AuthenticationError, response_for

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN = frozenset({"same-origin", "none"})
_PRIVATE = (".internal", ".local", ".localhost", ".home.arpa", ".svc")
"""Ends of names that nobody can register: those of local networks, of Docker and of Kubernetes."""
_PORTS = {"http": ":80", "https": ":443"}


class OriginCheck:
    """Refuse what pages of other sites send, and without keys every name that a stranger can own."""

    def __init__(self, app: ASGIApp, *, host: str, allowed_hosts: Iterable[str], has_keys: bool) -> None:
        self._app = app
        self._named = {_unbracketed(host.lower()), *allowed_hosts}
        self._asks_for_names = not has_keys
        self._only_loopback = resolves_to_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on unless a page of another site may have sent it."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except AuthenticationError as error:
                await response_for(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        hosts = _values(scope, b"host")
        if self._asks_for_names and not all(self._is_ours(host) for host in hosts):
            ours = (
                "localhost and 127.0.0.1"
                if self._only_loopback
                else "addresses, names without a dot and names of local networks"
            )
            text = f"without keys this server answers only to {ours}; ask it by such a name"
            raise AuthenticationError(
                f"{text}, put its name into STRATA_ALLOWED_HOSTS, or set STRATA_API_KEYS",
                status=403,
                code="unknown_host",
            )
        mark = None if scope["method"] in _SAFE else _mark_of_foreign(scope, hosts)
        if mark is not None:
            text = "a web page of another site sent this; only pages of this server may change anything here"
            raise AuthenticationError(
                f"{text}. From a program, leave out the header {mark}", status=403, code="cross_site"
            )

    def _is_ours(self, host: str) -> bool:
        """Tell whether a Host is one that no stranger's domain can turn to this server."""
        name = _name(host)
        if name is None:
            return False
        if name in self._named or _is_loopback(name):
            return True
        return not self._only_loopback and (_is_address(name) or "." not in name or name.endswith(_PRIVATE))


def resolves_to_loopback(host: str) -> bool:
    """Tell whether an address or name to listen on is this machine alone; a name that is unknown is not."""
    name = _unbracketed(host.lower())
    if _is_loopback(name) or _is_address(name):
        return _is_loopback(name)
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(_is_loopback(str(address[0])) for *_, address in found)


def _mark_of_foreign(scope: Scope, hosts: list[str]) -> str | None:
    """Return the header by which a page of another origin is known to have sent the request, None if none is.

    Sec-Fetch-Site decides where a browser sends it, to secure origins and loopback: no page can set it, and
    no proxy on the way changes it as it may change Host. Elsewhere Origin has to be what was asked.
    """
    sites = _values(scope, b"sec-fetch-site")
    if sites:
        return "Sec-Fetch-Site" if any(site.lower() not in _OWN for site in sites) else None
    origins = _values(scope, b"origin")
    return "Origin" if any(_origin(text) not in _asked(text, hosts) for text in origins) else None


def _origin(text: str) -> str | None:
    """Return host and port of an origin; None for ``null`` and for what is none."""
    scheme, _, place = text.lower().partition("://")
    return place.removesuffix(_PORTS[scheme]) if place and scheme in _PORTS else None


def _asked(origin: str, hosts: list[str]) -> set[str]:
    """Return the Hosts that were asked, written as in the origin: without its scheme's own port."""
    port = _PORTS.get(origin.lower().partition("://")[0], "")
    return {host.lower().removesuffix(port) for host in hosts}


def _name(host: str) -> str | None:
    """Return the name in a Host header without its port and brackets; None for what is no name."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _unbracketed(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")


def _is_loopback(name: str) -> bool:
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]
