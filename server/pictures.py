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
MAX_FETCHED_BYTES = 16 * MAX_BYTES
"""What a request with the most and largest pictures may bring, held once for all requests together."""
_TIMEOUT_SECONDS = 10.0
_PARAM = "messages"


class Room:
    """Let holders in while their sizes together stay within ``most``; one alone always fits."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._changed = asyncio.Condition()

    async def take(self, size: int) -> None:
        """Wait for room and take it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._held or self._held + size <= self._most)
            self._held += size

    async def give(self, size: int) -> None:
        """Give room back."""
        async with self._changed:
            self._held -= size
            self._changed.notify_all()


class Fetched:
    """Hold the picture files of one request until they are decoded."""

    def __init__(self, files: list[bytes], held_bytes: int, room: Room) -> None:
        self.files = files
        self._held_bytes = held_bytes
        self._room = room

    async def keep(self, most_bytes: int) -> None:
        """Give back the room beyond ``most_bytes``."""
        more, self._held_bytes = self._held_bytes - most_bytes, most_bytes
        await self._room.give(more)

    async def drop(self) -> None:
        """Let go of the files and of their room."""
        self.files.clear()
        await self.keep(0)


class PictureLoader:
    """Turn the pictures of a request into RGB, few enough at once that memory holds them.

    Files from other hosts are bytes that no request body was counted for, so requests wait for room before
    they fetch, and keep it until their pictures are decoded. Decoded pictures are hundreds of times as large
    as their files, so requests wait for room before they decode, and keep it only until the tower has read
    their pictures.
    """

    def __init__(
        self,
        hosts: frozenset[str] = frozenset(),
        *,
        resolve: Resolve | None = None,
        max_bytes: int = MAX_BYTES,
        max_request_pixels: int = MAX_REQUEST_PIXELS,
        max_pixels: int = MAX_PIXELS_AT_ONCE,
        max_fetched_bytes: int = MAX_FETCHED_BYTES,
    ) -> None:
        self._hosts = hosts
        self._resolve = resolve or resolve_addresses
        self._max_bytes = max_bytes
        self._max_request_pixels = max_request_pixels
        self._decoding = Room(max_pixels)
        self._fetching = Room(max_fetched_bytes)

    async def fetch(self, url: str) -> bytes:
        """Return the picture file behind ``url``; raise ImageError with what to do."""
        if not _is_remote(url):
            return await asyncio.to_thread(decode_inline, url, max_bytes=self._max_bytes)
        return await self._fetch(url)

    @asynccontextmanager
    async def fetched(self, sources: Sequence[str | bytes]) -> AsyncIterator[Fetched]:
        """Hold the files behind URLs (or given as they are) inside the block, or until they are decoded.

        Raises:
            ImageError: a URL may not be fetched, or what it gave is no picture that is accepted.
        """
        wanted = self._max_bytes * sum(_is_remote(source) for source in sources)
        await self._fetching.take(wanted)
        held = Fetched([], wanted, self._fetching)
        try:
            remote = 0
            for source in sources:
                held.files.append(source if isinstance(source, bytes) else await self.fetch(source))
                remote += len(held.files[-1]) if _is_remote(source) else 0
            await held.keep(remote)
            yield held
        finally:
            await held.drop()

    @asynccontextmanager
    async def decoded_once(self, fetched: Fetched) -> AsyncIterator[tuple[Image.Image, ...]]:
        """Decode as ``decoded`` does and let go of the files."""
        async with self.decoded(fetched.files) as pictures:
            await fetched.drop()
            yield pictures

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
        await self._decoding.take(pixels)
        try:
            yield tuple(
                [await asyncio.to_thread(decode_image, data, max_bytes=self._max_bytes) for data in files]
            )
        finally:
            await self._decoding.give(pixels)

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


def _is_remote(source: str | bytes) -> bool:
    return isinstance(source, str) and source[:5].lower() != "data:"


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
