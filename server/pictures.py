"""Pictures of a request: ``data:`` URLs always, http(s) only from hosts that the operator lists.

A fetched URL must name a listed host, its address must be public, and the connection goes to the very address
that was checked, so a DNS answer that changes in between gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from urllib.parse import SplitResult, urlsplit

import httpx
from PIL import Image

from adapter_store.errors import ImageError
from adapter_store.images import MAX_BYTES, MAX_PIXELS, count_pixels, decode_image, decode_inline

Resolve = Callable[[str, int], Awaitable[list[str]]]
MAX_REQUEST_PIXELS = 2 * MAX_PIXELS
MAX_PIXELS_AT_ONCE = 4 * MAX_REQUEST_PIXELS
"""Three bytes each: about a gigabyte."""
_TIMEOUT_SECONDS = 10.0
_PARAM = "messages"


class PictureLoader:
    """Turn the pictures of a request into RGB, few enough at once that memory holds them.

    Decoded pictures are hundreds of times as large as their files, so requests wait for room before they
    decode, and keep it only until the tower has read their pictures.
    """

    def __init__(
        self,
        hosts: frozenset[str] = frozenset(),
        *,
        resolve: Resolve | None = None,
        max_bytes: int = MAX_BYTES,
        max_request_pixels: int = MAX_REQUEST_PIXELS,
        max_pixels: int = MAX_PIXELS_AT_ONCE,
    ) -> None:
        self._hosts = hosts
        self._resolve = resolve or resolve_addresses
        self._max_bytes = max_bytes
        self._max_request_pixels = max_request_pixels
        self._max_pixels = max_pixels
        self._pixels = 0
        self._changed = asyncio.Condition()

    async def fetch(self, url: str) -> bytes:
        """Return the picture file behind ``url``; raise ImageError with what to do."""
        if url[:5].lower() == "data:":
            return await asyncio.to_thread(decode_inline, url, max_bytes=self._max_bytes)
        return await self._fetch(url)

    @asynccontextmanager
    async def decoded(self, files: Sequence[bytes]) -> AsyncIterator[tuple[Image.Image, ...]]:
        """Wait for room, decode all pictures of one request and hold the room inside the block.

        Raises:
            ImageError: a picture is damaged or too large, or all together are.
        """
        pixels = sum([await asyncio.to_thread(count_pixels, data) for data in files])
        if pixels > self._max_request_pixels:
            text = f"the pictures of this request have {pixels} pixels together"
            raise ImageError(f"{text}; at most {self._max_request_pixels} are accepted", param=_PARAM)
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._pixels or self._pixels + pixels <= self._max_pixels
            )
            self._pixels += pixels
        try:
            yield tuple(
                [await asyncio.to_thread(decode_image, data, max_bytes=self._max_bytes) for data in files]
            )
        finally:
            async with self._changed:
                self._pixels -= pixels
                self._changed.notify_all()

    async def _fetch(self, url: str) -> bytes:
        parts = self._checked(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await self._public_address(host, port)
        literal = f"[{address}]" if ":" in address else address
        target = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
        try:
            async with (
                httpx.AsyncClient(
                    trust_env=False, follow_redirects=False, timeout=_TIMEOUT_SECONDS
                ) as client,
                asyncio.timeout(3 * _TIMEOUT_SECONDS),
                client.stream(
                    "GET", target, headers={"host": parts.netloc}, extensions={"sni_hostname": host}
                ) as answer,
            ):
                return await self._read(answer)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            raise ImageError(
                f"the picture could not be fetched from {host}; send it as data: URL", param=_PARAM
            ) from None

    async def _read(self, answer: httpx.Response) -> bytes:
        if answer.status_code != 200:
            text = f"the picture's host answered {answer.status_code}; redirects are not followed"
            raise ImageError(f"{text}; send it as data: URL", param=_PARAM)
        data = bytearray()
        async for chunk in answer.aiter_bytes():
            data += chunk
            if len(data) > self._max_bytes:
                raise ImageError(
                    f"the picture is larger than the {self._max_bytes} bytes accepted", param=_PARAM
                )
        return bytes(data)

    def _checked(self, url: str) -> SplitResult:
        """Return the URL's parts if its host is listed; raise ImageError otherwise."""
        if any(char in url for char in "\\\r\n\t ") or not url.isascii():
            raise ImageError("the image URL has characters that URLs may not have", param=_PARAM)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ImageError("the image URL cannot be read", param=_PARAM) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ImageError(
                "an image URL is a data: URL, or http(s) of a host that is allowed here", param=_PARAM
            )
        if parts.username is not None or parts.password is not None:
            raise ImageError("an image URL may not carry a user name", param=_PARAM)
        host = parts.hostname.rstrip(".").lower()
        wanted = {host} if port in (None, 80, 443) else set()
        if not self._hosts & (wanted | {f"{host}:{port}"}):
            allowed = ", ".join(sorted(self._hosts)) or "none"
            text = f"pictures may not be fetched from this host (allowed: {allowed}); send a data: URL"
            raise ImageError(f"{text}, or have the operator list it in STRATA_IMAGE_URL_HOSTS", param=_PARAM)
        return parts

    async def _public_address(self, host: str, port: int) -> str:
        """Return one address of ``host``; raise ImageError if any of them is not public."""
        try:
            addresses = await self._resolve(host, port)
        except OSError:
            addresses = []
        if not addresses or not all(is_public(address) for address in addresses):
            raise ImageError("the image URL's host has no public address; send a data: URL", param=_PARAM)
        return addresses[0]


def is_public(address: str) -> bool:
    """Tell whether an IP address is globally reachable: not loopback, private, link-local or mapped."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is not None:
            return False
    return parsed.is_global and not parsed.is_multicast


async def resolve_addresses(host: str, port: int) -> list[str]:
    """Return the addresses that DNS gives for ``host``."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def parse_hosts(text: str) -> frozenset[str]:
    """Read the comma-separated hosts of the setting, ``host`` or ``host:port``."""
    return frozenset(part.strip().lower() for part in text.split(",") if part.strip())
